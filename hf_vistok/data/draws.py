"""
Random draws that depend on what they are for and on nothing else.

A draw is a hash of (seed, stream, counter). Training uses the global index of a sample as the counter, so that the
number of processes, workers or restarts cannot change what is drawn for it.
"""

import zlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def hashed(seed: int, stream: str, counter: np.ndarray | int) -> np.ndarray:
    """
    Hashes counters to 64 bits.

    Args:
        seed: of the run.
        stream: what the draws are for; different names give independent draws.
        counter: non-negative integers, any shape.

    Returns:
        uint64 of the shape of `counter`.
    """
    counter = np.atleast_1d(np.asarray(counter)).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed % 2**64], np.uint64) + _STEP * np.uint64(zlib.crc32(stream.encode())))
        return _mix(_mix(key + counter * _STEP) + key)


def uniform(seed: int, stream: str, counter: np.ndarray | int) -> np.ndarray:
    """Float64 in [0, 1), one for each counter; see [`hashed`]."""
    return (hashed(seed, stream, counter) >> np.uint64(11)).astype(np.float64) / 2.0**53


def integers(seed: int, stream: str, counter: np.ndarray | int, low: int, high: int) -> np.ndarray:
    """Int64 in [low, high), one for each counter; see [`hashed`]."""
    return low + (uniform(seed, stream, counter) * (high - low)).astype(np.int64)


class EpochOrder:
    """
    The order of samples: a new permutation for each pass over the data.

    Args:
        size: number of samples, at least 1.
        seed: of the run.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Global positions 0, 1, 2, ... of a run to indices of samples, int64 of the same shape."""
        out = np.empty(len(positions), np.int64)
        for epoch in np.unique(positions // self.size):
            here = positions // self.size == epoch
            out[here] = self._permutation(int(epoch))[positions[here] % self.size]
        return out

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            keys = hashed(self.seed, f"order {epoch}", np.arange(self.size))
            self._epoch, self._order = epoch, np.argsort(keys, kind="stable")
        return self._order

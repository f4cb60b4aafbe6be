"""What a run tells: JSON lines, a progress bar, sheets of pictures, the use of the codebook."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class JsonLog:
    """
    A file of JSON lines, one for each step and each evaluation.

    Args:
        path: the file; lines of steps after `step` (of a run that was killed later than its last state) are removed.
        step: step that the run goes on from.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        kept = [line for line in _lines(path) if line.get("step", 0) <= step] if step else []
        scratch = path.with_suffix(".part")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(scratch, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, **values: Any) -> None:
        """Appends one line."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The readable lines of a log; a kill can leave half a line at the end."""
    if not path.is_file():
        return []
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return out


class CodebookMeter:
    """
    Counts ids between two reports.

    Args:
        codebook_size: number of different ids of one codebook.
    """

    def __init__(self, codebook_size: int) -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def add(self, token_ids: Tensor) -> None:
        """Counts ids of any shape."""
        flat = token_ids.detach().flatten()
        self.counts = self.counts.to(flat.device)
        self.counts += torch.bincount(flat, minlength=len(self.counts))

    def report(self, counts: Tensor) -> dict[str, float]:
        """Share of the codes used and perplexity, of `counts` over all processes; starts counting anew."""
        self.counts.zero_()
        shares = counts.double() / max(1, int(counts.sum()))
        entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
        return {"codebook_usage": float((counts > 0).double().mean()), "codebook_perplexity": float(entropy.exp())}

    @staticmethod
    def collapsed(values: dict[str, float], drawn: int, size: int) -> bool:
        """Whether fewer than 1 % of the codes that could have been seen are in use."""
        return values["codebook_perplexity"] < max(2.0, 0.01 * min(size, drawn))


class Progress:
    """
    A progress bar with images per second, the time left and a few figures.

    Args:
        steps, start: of the run, and where it goes on from.
        batch_size: pictures of a step.
        show: whether this process shows it.
    """

    def __init__(self, steps: int, start: int, batch_size: int, show: bool) -> None:
        from tqdm.auto import tqdm

        self.batch_size, self.began, self.done = batch_size, time.perf_counter(), 0
        self.bar = tqdm(total=steps, initial=start, disable=not show, unit="step", smoothing=0.05, mininterval=1.0)

    def step(self) -> float:
        """Counts a step; returns images per second since the start."""
        self.done += 1
        self.bar.update()
        return self.done * self.batch_size / (time.perf_counter() - self.began)

    def show(self, **figures: str) -> None:
        """Figures beside the bar."""
        self.bar.set_postfix(figures, refresh=False)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bar.write(text)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


def save_sheet(path: Path, rows: list[tuple[str, np.ndarray]], zoom: int = 1) -> None:
    """
    Writes rows of pictures, each with a label on the left.

    Args:
        path: of the PNG file.
        rows: label, and uint8 `(B, H, W, 3)`.
        zoom: size of a pixel.
    """
    from PIL import Image, ImageDraw

    count, height, width = rows[0][1].shape[:3]
    margin, gap = 48, 2
    sheet = Image.new("RGB", (margin + count * (width * zoom + gap), len(rows) * (height * zoom + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (label, pictures) in enumerate(rows):
        top = y * (height * zoom + gap)
        draw.text((4, top + height * zoom // 2 - 6), label, fill="black")
        for x, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
            sheet.paste(tile, (margin + x * (width * zoom + gap), top))
    scratch = path.with_suffix(".part")
    sheet.save(scratch, format="PNG")
    os.replace(scratch, path)

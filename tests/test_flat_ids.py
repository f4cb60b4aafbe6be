"""flatten_ids and unflatten_ids: one vocabulary for all codebooks and maps of a tokenizer."""

import pytest
import torch

from hf_vistok.modeling.layers.flat_ids import flat_vocab_size, flatten_ids, unflatten_ids
from hf_vistok.modeling.outputs import TokenSegment

from .tiny import TINY


class Maps:
    """Two maps with codebooks of their own, the second in two scales."""

    is_discrete, num_codebooks = True, 1

    def token_segments(self, height=None, width=None):
        return [
            TokenSegment("semantic", (2, 2), 10, "semantic"),
            TokenSegment("pixels-1", (1, 1), 100, "pixels"),
            TokenSegment("pixels-2", (2, 2), 100, "pixels"),
        ]


class Codebooks:
    is_discrete, num_codebooks, codebook_size = True, 3, 7


def test_maps_have_ranges_of_their_own():
    ids = torch.tensor([[9, 0, 1, 2, 99, 0, 1, 2, 3]])
    flat = flatten_ids(Maps(), ids)
    assert flat.tolist() == [[9, 0, 1, 2, 109, 10, 11, 12, 13]] and flat_vocab_size(Maps()) == 110
    assert torch.equal(unflatten_ids(Maps(), flat), ids)


def test_codebooks_stand_side_by_side():
    ids = torch.tensor([[[1, 2, 3], [4, 5, 6]]])
    flat = flatten_ids(Codebooks(), ids)
    assert flat.tolist() == [[1, 9, 17, 4, 12, 20]] and flat_vocab_size(Codebooks()) == 21
    assert torch.equal(unflatten_ids(Codebooks(), flat), ids)
    with pytest.raises(ValueError, match="shape"):
        unflatten_ids(Codebooks(), flat[:, :4])


@pytest.mark.parametrize("name", ["titok", "one_d_piece"])
def test_round_trip_of_a_model(name):
    model = next(tiny.build() for key, tiny in TINY.items() if key.startswith(name))
    ids = torch.randint(model.codebook_size, (2, model.num_tokens))
    flat = model.flatten_ids(ids)
    assert flat.shape == ids.shape and int(flat.max()) < model.vocab_size
    assert torch.equal(model.unflatten_ids(flat), ids)
    with pytest.raises(ValueError, match="must lie in"):
        model.unflatten_ids(torch.full((1, model.num_tokens), model.vocab_size))

"""The libraries' own tokenizers behind the contract give what they give by themselves."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel
from transformers import ChameleonVQVAE, Emu3VQVAE, JanusVQVAE
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig

from hf_vistok import AutoImageTokenizer, AutoImageTokenizerProcessor
from hf_vistok.modeling.wrapped.modeling_wrapped import WrappedTokenizerModel

CONV = {"base_channels": 32, "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 8}


def kl():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(block_out_channels=[32, 32], latent_channels=4, sample_size=16, **blocks)


def vq():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return VQModel(block_out_channels=[32, 32], latent_channels=4, num_vq_embeddings=16, sample_size=16, **blocks)


def dc():
    sides = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in
             {"block_types": ("ResBlock", "ResBlock"), "block_out_channels": (32, 32), "layers_per_block": (1, 1),
              "qkv_multiscales": ((), ())}.items()}  # fmt: skip
    return AutoencoderDC(latent_channels=4, attention_head_dim=8, **sides)


def chameleon():
    return ChameleonVQVAE(ChameleonVQVAEConfig(num_embeddings=16, channel_multiplier=[1, 1], resolution=16, **CONV))


def janus():
    return JanusVQVAE(
        JanusVQVAEConfig(num_embeddings=16, channel_multiplier=[1, 1], num_patches=8, projection_dim=8, **CONV)
    )


def emu3():
    sizes = {"channel_multiplier": [1, 1], "attn_resolutions": [], "hidden_size": 32}
    return Emu3VQVAE(Emu3VQVAEConfig(codebook_size=16, **sizes, **CONV))


BUILDERS = {f.__name__: f for f in (kl, vq, dc, chameleon, janus, emu3)}


@pytest.fixture(params=BUILDERS)
def inner(request):
    torch.manual_seed(0)
    return BUILDERS[request.param]().eval()


@torch.no_grad()
def theirs(inner, x):
    """Ids (or latents) and the picture, by the library's own calls."""
    name = type(inner).__name__
    if name == "AutoencoderKL":
        z = inner.encode(x).latent_dist.mode()
        return z, inner.decode(z).sample
    if name == "AutoencoderDC":
        z = inner.encode(x).latent
        return z, inner.decode(z).sample
    if name == "VQModel":
        h = inner.encode(x).latents
        return inner.quantize(h)[2][2].view(len(x), -1), inner.decode(h).sample
    if name == "Emu3VQVAE":
        sizes = torch.tensor([list(x.shape[2:])] * len(x))
        ids = torch.stack(inner.encode(x, image_sizes=sizes).image_tokens)
        picture = inner.decode(ids)
        return ids.flatten(1), picture if picture.ndim == 4 else picture[:, 0]
    ids = inner.encode(x, return_dict=True).image_tokens.view(len(x), -1)
    return ids, inner.decode(ids) if name == "JanusVQVAE" else None


def test_equals_the_library(inner, tmp_path):
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    want, picture = theirs(inner, x)
    model = WrappedTokenizerModel.wrap(inner)
    with torch.no_grad():
        encoded = model.encode(x)
        if model.is_discrete:
            assert torch.equal(encoded.token_ids, want)
        else:
            torch.testing.assert_close(encoded.latents, want)
        if picture is not None:
            torch.testing.assert_close(model.decode(encoded.latents).sample, picture, atol=1e-5, rtol=1e-4)
    inner.save_pretrained(tmp_path / "theirs")
    loaded = AutoImageTokenizer.from_pretrained(tmp_path / "theirs")
    assert isinstance(loaded, WrappedTokenizerModel) and loaded.num_tokens == (loaded.config.image_size // 2) ** 2
    assert AutoImageTokenizerProcessor.from_pretrained(tmp_path / "theirs").size
    loaded.save_pretrained(tmp_path / "ours")
    again = AutoImageTokenizer.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again.encode(x).latents, encoded.latents)


def test_chameleon_says_that_it_has_no_decoder():
    model = WrappedTokenizerModel.wrap(chameleon())
    assert model.decodes_to is None
    with pytest.raises(ValueError, match="no decoder"):
        model.decode_tokens(torch.zeros(1, 64, dtype=torch.long))

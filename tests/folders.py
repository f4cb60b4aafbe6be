"""Tiny checkpoints on disk: folders of ours, and folders in the layout of the original authors."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

SIZE = 32
WIDTHS = {
    f"{part}_{key}": value
    for part in ("encoder", "decoder")
    for key, value in {"patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 4}.items()
}
ORIGINAL_NAMES = (
    (r"^encoder\.latent_tokens$", "latent_tokens"),
    (r"^(encoder|decoder)\.layers\.", r"\1.transformer."),
    (r"\.latent_position_embedding$", ".latent_token_positional_embedding"),
    (r"\.position_embedding$", ".positional_embedding"),
    (r"\.norm_pre\.", ".ln_pre."),
    (r"\.norm_post\.", ".ln_post."),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.qkv\.(weight|bias)$", r".in_proj_\1"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.fc1\.", ".c_fc."),
    (r"\.fc2\.", ".c_proj."),
    (r"^encoder\.proj\.", "encoder.conv_out."),
    (r"^decoder\.embed\.", "decoder.decoder_embed."),
    (r"^conv_out\.", "decoder.conv_out."),
    (r"^decoder\.head\.", "decoder.ffn.0."),
)


def raises(*words: str, kind: type[Exception] = ValueError):
    """Expects an error of a kind whose message holds all words, in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(word) for word in words))


def one_d_piece(num_tokens: int = 8, codebook_size: int = 64):
    """A tiny prefix-ordered tokenizer."""
    from hf_vistok import OneDPieceConfig, OneDPieceModel

    torch.manual_seed(0)
    config = OneDPieceConfig(
        image_size=SIZE,
        num_latent_tokens=num_tokens,
        token_size=4,
        codebook_size=codebook_size,
        pixel_head="patch",
        **WIDTHS,
    )
    return OneDPieceModel(config).eval()


def titok(**options):
    """A tiny TiTok of the one-stage kind."""
    from hf_vistok import TiTokConfig, TiTokModel

    torch.manual_seed(1)
    fields = {"num_latent_tokens": 8, "token_size": 4, "codebook_size": 64, "pixel_head": "patch", "use_l2_norm": False}
    return TiTokModel(TiTokConfig(image_size=SIZE, **{**fields, **options}, **WIDTHS)).eval()


def maskgit_prior():
    """A tiny masked prior for both."""
    from hf_vistok import MaskGitPrior, MaskGitPriorConfig

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    prior = MaskGitPrior(MaskGitPriorConfig(codebook_size=64, num_image_tokens=8, num_classes=5, **sizes)).eval()
    prior.set_published_settings(num_inference_steps=3, cfg_scale=2.0)
    return prior


def save_tokenizer(folder: Path, model=None) -> Path:
    """A folder of ours with a processor."""
    from hf_vistok import ImageTokenizerProcessor

    model = model or one_d_piece()
    model.save_pretrained(folder)
    ImageTokenizerProcessor.for_config(model.config).save_pretrained(folder)
    return folder


def save_prior(folder: Path) -> Path:
    """A folder of ours with a masked prior."""
    maskgit_prior().save_pretrained(folder)
    return folder


def save_pipeline(folder: Path) -> Path:
    """A folder of a MaskGIT pipeline."""
    from hf_vistok import MaskGitPipeline

    MaskGitPipeline(one_d_piece(), maskgit_prior()).save_pretrained(folder)
    return folder


def titok_original_config() -> dict:
    """The authors' configuration of `titok()`."""
    size = {"width": 32, "num_layers": 2, "num_heads": 4}
    vq = {"vit_enc_model_size": "tiny", "vit_dec_model_size": "tiny", "vit_enc_patch_size": 8, "vit_dec_patch_size": 8}
    vq |= {"num_latent_tokens": 8, "codebook_size": 64, "token_size": 4, "use_l2_norm": False, "commitment_cost": 0.25}
    vq |= {"finetune_decoder": False, "is_legacy": False}
    return {
        "model": {"vq_model": vq},
        "dataset": {"preprocessing": {"crop_size": SIZE}},
        "fixture_overrides": {"model_sizes": {"tiny": size}},
    }


def titok_original_state() -> dict[str, torch.Tensor]:
    """The tensors of `titok()` under the authors' names."""
    state = {}
    for name, tensor in titok(scrambled_latents=False).state_dict().items():
        for pattern, replacement in ORIGINAL_NAMES:
            name = re.sub(pattern, replacement, name)
        flat = name in ("encoder.conv_out.weight", "decoder.ffn.0.weight")
        state[name] = (tensor[:, :, None, None] if flat else tensor).contiguous()
    return state


def save_titok_original(folder: Path) -> Path:
    """A tiny TiTok in the authors' layout."""
    return save_original(folder, titok_original_config(), titok_original_state())


def save_prior_original(folder: Path) -> Path:
    """A tiny masked prior in the authors' layout."""
    generator = {"model_type": "ViT", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    generator |= {"intermediate_size": 64, "image_seq_len": 8, "condition_num_classes": 5, "num_steps": 3}
    config = {"model": {"vq_model": {"codebook_size": 64, "num_latent_tokens": 8}, "generator": generator}}
    state = maskgit_prior().state_dict()
    names = {name: re.sub(r"^model\.bert\.", "model.", name) for name in state}
    return save_original(folder, config, {names[n].replace("lm_head.", "model.lm_head."): t for n, t in state.items()})


def save_original(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> Path:
    """config.json and model.safetensors, as the Hub mixin writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def save_pictures(folder: Path, count: int = 3, size: tuple[int, int] = (48, 40)) -> Path:
    """Small pictures that differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = Image.new("RGB", size, (40 * index, 200 - 30 * index, 90))
        ImageDraw.Draw(image).ellipse((4 + index, 4, 30, 30), fill=(255, 220 - 50 * index, 0))
        image.save(folder / f"picture_{index}.png")
    return folder

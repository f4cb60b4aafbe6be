"""RAE in diffusers' format (`AutoencoderRAE`): read like the authors' checkpoints, and written."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .adapter import ConversionError, State

if TYPE_CHECKING:
    from diffusers import AutoencoderRAE

CLASS_NAME = "AutoencoderRAE"
HEAD_DIM = 64  # of every encoder, in diffusers
STD_EPS = 1e-5  # diffusers divides by std + eps, the authors by sqrt(var + eps)
IMAGE_SIZES = {"dinov2": 518, "siglip2": 256, "mae": 224}  # of the encoder's position tables
_LAYER = r"^decoder\.decoder_layers\.(\d+)\.attention\.to_"
RENAMES = [
    *((rf"{_LAYER}{name[0]}\.", rf"decoder.layers.\1.attn.{name}.") for name in ("query", "key", "value")),
    (rf"{_LAYER}out\.0\.", r"decoder.layers.\1.attn.proj."),
    (r"^_latents_(mean|std)$", r"statistics.\1"),
]
DROPS = {r"encoder_(mean|std)": "they stand in the configuration"}


def has_statistics(config: dict[str, Any]) -> bool:
    """Whether a configuration of diffusers has statistics; else the tensors of the file do nothing."""
    return config.get("latents_mean") is not None or config.get("latents_std") is not None


def encoder_config(kind: str, hidden_size: int, patch_size: int, num_layers: int) -> dict[str, Any]:
    """The encoder that diffusers builds from these numbers; all else is transformers' default."""
    if kind not in IMAGE_SIZES:
        raise ConversionError(f"Unknown encoder_type {kind!r}; known: {', '.join(IMAGE_SIZES)}.")
    return {
        "hidden_size": hidden_size,
        "patch_size": patch_size,
        "image_size": IMAGE_SIZES[kind],
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // HEAD_DIM,
    }


def diffusers_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for one of diffusers."""
    kind, patch = config.get("encoder_type", "dinov2"), config.get("encoder_patch_size", 14)
    size, decoder_patch = config.get("encoder_input_size", 224), config.get("patch_size", 16)
    if not config.get("reshape_to_2d", True):
        raise ConversionError("reshape_to_2d must be True: latents are maps here.")
    numbers = (config.get("encoder_hidden_size", 768), patch, config.get("encoder_num_hidden_layers", 12))
    defaults = {"hidden_size": 512, "num_layers": 8, "num_heads": 16, "intermediate_size": 2048}
    theirs = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
    decoder = {
        f"decoder_{name}": config.get(f"decoder_{theirs.get(name, name)}", value) for name, value in defaults.items()
    }
    return decoder | {
        "encoder_type": kind,
        "encoder_config": encoder_config(kind, *numbers),
        "encoder_input_size": size,
        "encoder_mean": config.get("encoder_norm_mean") or (0.485, 0.456, 0.406),
        "encoder_std": config.get("encoder_norm_std") or (0.229, 0.224, 0.225),
        "decoder_patch_size": decoder_patch,
        "image_size": size // patch * decoder_patch,
        "has_statistics": has_statistics(config),
        "noise_tau": float(config.get("noise_tau", 0.0)),
    }


def statistics(mean: Tensor, std: Tensor, shape: tuple[int, int, int], eps: float, scale: float = 1.0) -> State:
    """The mean and variance with which `(x - mean) / sqrt(var + eps)` is what diffusers computes, in float64."""
    var = ((std.double() + STD_EPS) / scale).square() - eps
    return {"mean": mean.expand(shape).clone(), "var": var.expand(shape).to(mean.dtype)}


def position_table(dim: int, side: int) -> Tensor:
    """diffusers' table `(1 + side * side, dim)`: its coordinates span 16 whatever the side, so only 16 is MAE's own."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    return get_2d_sincos_pos_embed(dim, side, cls_token=True, extra_tokens=1, output_type="pt").float()


def add_tables(state: State, fields: dict[str, Any], eps: float, scale: float) -> State:
    """Statistics in the authors' form, and the decoder's table of positions, which diffusers does not store."""
    side = fields["encoder_input_size"] // fields["encoder_config"]["patch_size"]
    like, found = state["decoder.embed.weight"], dict(state)
    if "decoder.position_embedding" not in found:
        found["decoder.position_embedding"] = position_table(fields["decoder_hidden_size"], side).to(like)
    mean, std = (found.pop(f"statistics.{name}", None) for name in ("mean", "std"))
    if fields["has_statistics"]:
        if mean is None or std is None:
            raise ConversionError("The configuration has statistics of latents, and the weights do not.")
        shape = (fields["encoder_config"]["hidden_size"], side, side)
        values = statistics(mean, std, shape, eps, scale)
        found |= {f"statistics.{name}": value for name, value in values.items()}
    return found


# ------------------------------------------------------------------ the other way


def diffusers_config(model: Any) -> dict[str, Any]:
    """
    Arguments of diffusers' class for a model of ours.

    Raises:
        ConversionError: for parts that diffusers cannot build.
    """
    config, tower = model.config, model.encoder
    if tower is None:
        raise ConversionError("This RaeModel is a decoder alone; diffusers' class has an encoder.")
    given = tower.config
    built = encoder_config(config.encoder_type, given.hidden_size, given.patch_size, given.num_hidden_layers)
    expected = type(given)(**built)
    names = ("num_attention_heads", "image_size", "layer_norm_eps", "hidden_act", "num_register_tokens")
    names += ("mlp_ratio", "intermediate_size", "qkv_bias", "use_swiglu_ffn")
    other = [n for n in names if hasattr(given, n) and getattr(given, n) != getattr(expected, n)]
    if config.decoder_layer_norm_eps != 1e-12 or not config.decoder_qkv_bias:
        other.append("decoder_layer_norm_eps or decoder_qkv_bias")
    if other:
        raise ConversionError(f"{CLASS_NAME} cannot have another {', '.join(other)} than its own.")
    return {
        "encoder_type": config.encoder_type,
        "encoder_hidden_size": given.hidden_size,
        "encoder_patch_size": given.patch_size,
        "encoder_num_hidden_layers": given.num_hidden_layers,
        "decoder_hidden_size": config.decoder_hidden_size,
        "decoder_num_hidden_layers": config.decoder_num_layers,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": config.decoder_intermediate_size,
        "patch_size": config.decoder_patch_size,
        "encoder_input_size": config.encoder_input_size,
        "encoder_norm_mean": list(config.encoder_mean),
        "encoder_norm_std": list(config.encoder_std),
        "noise_tau": config.noise_tau,
    }


def decoder_state(model: Any) -> State:
    """The decoder's tensors under diffusers' names."""
    whole = {"embed": "decoder_embed", "norm": "decoder_norm", "head": "decoder_pred"}
    inner = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.to_out.0"}
    inner |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    found: State = {}
    for name, tensor in model.decoder.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if name == "class_token":
            found["trainable_cls_token"] = tensor
        elif path in whole:
            found[f"{whole[path]}.{leaf}"] = tensor
        elif path.startswith("layers."):
            _, index, rest = path.split(".", 2)
            layer = f"decoder_layers.{index}."
            if rest == "attn.qkv":
                for part, value in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{layer}attention.to_{part}.{leaf}"] = value
            else:
                found[f"{layer}{inner[rest]}.{leaf}"] = tensor
    return found


def to_diffusers(model: Any) -> "AutoencoderRAE":
    """
    diffusers' autoencoder with the weights and the statistics of a [`RaeModel`].

    Its latents and pictures are the same. A decoder with another table of positions than diffusers computes is
    refused; that is one with another grid than 16 x 16.

    Raises:
        ConversionError: for what diffusers' class cannot express.
    """
    from diffusers import AutoencoderRAE

    arguments = diffusers_config(model)
    if model.statistics is not None:
        std = torch.sqrt(model.statistics.var.double() + model.config.statistics_eps) - STD_EPS
        arguments |= {"latents_mean": model.statistics.mean, "latents_std": std.float()}
    other = AutoencoderRAE(**arguments)
    if not torch.allclose(
        other.decoder.decoder_pos_embed[0], model.decoder.position_embedding.float().cpu(), atol=1e-5
    ):
        raise ConversionError(f"{CLASS_NAME} computes the decoder's table of positions; this one is another.")
    other.decoder.load_state_dict(decoder_state(model))
    # the same module of transformers on both sides, but for norms without gain
    other.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    return other.to(model.dtype).eval()

"""Original checkpoints of Send-VAE and REPA-E: KL autoencoders of LDM's layout, and SiT generators with projections."""

import os
import re
from typing import Any

import torch

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .latent_flow import SIZES, flow_plan

ARCHITECTURES = {  # of the files that come without a configuration
    "f16d32": {"embed_dim": 32, "ch_mult": [1, 1, 2, 2, 4]},
    "f8d4": {"embed_dim": 4, "ch_mult": [1, 2, 4, 4]},
}
TEACHERS = {"b": 768, "l": 1024, "g": 1536}  # widths of DINOv2
FACTORS = {"f16d32": (16, 32), "vavae": (16, 32), "invae": (16, 32), "f8d4": (8, 4), "sdvae": (8, 4)}
_ENCODER, _DECODER = r"^encoder\.down\.(\d+)\.", r"^decoder\.up\.(\d+)\."
VAE_RENAMES = [
    (_ENCODER + r"block\.", r"encoder.down.\1.blocks."),
    (_ENCODER + r"attn\.", r"encoder.down.\1.attentions."),
    (_ENCODER + r"downsample\.conv\.", r"encoder.downsample.\1."),
    (_DECODER + r"block\.", r"decoder.up.\1.blocks."),
    (_DECODER + r"attn\.", r"decoder.up.\1.attentions."),
    (r"\.mid\.block_(\d)\.", r".mid.block\1."),
    (r"\.mid\.attn_1\.", ".mid.attention."),
    (r"\.nin_shortcut\.", ".shortcut."),
]
VAE_DROPS = {
    r"loss\..*": "the discriminator and the perceptual network of training",
    r"(align|mapper)\w*\..*": "Send-VAE's mapper: training only",
}


def vae_fields(config: dict[str, Any]) -> dict[str, Any]:
    """
    Fields for the arguments of the VAE.

    Raises:
        ConversionError: where neither sizes nor a known architecture are given.
    """
    config = {**ARCHITECTURES.get(config.get("arch", ""), {}), **config}
    if "ch_mult" not in config:
        raise ConversionError(f"Unknown arch {config.get('arch')!r}; known: {', '.join(ARCHITECTURES)}.")
    size = config.get("resolution", 256)
    return {
        "image_size": size,
        "nominal_resolution": size,
        "hidden_channels": config.get("ch", 128),
        "channel_mult": tuple(config["ch_mult"]),
        "num_res_blocks": config.get("num_res_blocks", 2),
        "attention_resolutions": tuple(config.get("attn_resolutions", (16,))),
        "latent_channels": config["embed_dim"],
        "variational": config.get("use_variational", True),
    }


def reverse_levels(depth: int) -> Any:
    """A function that numbers the decoder's levels from the coarsest; LDM numbers them from the finest."""

    def surgery(state: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, tensor in state.items():
            match = re.match(r"decoder\.up\.(\d+)\.(upsample\.conv\.)?(.*)", name)
            if match:
                level = depth - 1 - int(match[1])
                name = f"decoder.upsample.{level}.{match[3]}" if match[2] else f"decoder.up.{level}.{match[3]}"
            found[name] = tensor
        return found

    return surgery


def without_counter(plan: Plan) -> Plan:
    """A plan that starts the batch norm's counter at 0: with a momentum, nothing reads it."""
    inner = plan.surgery

    def surgery(state: dict[str, Any]) -> dict[str, Any]:
        state = inner(state)
        if "latent_bn.running_mean" in state:
            state["latent_bn.num_batches_tracked"] = state["latent_bn.running_mean"].new_zeros((), dtype=torch.long)
        return state

    plan.surgery = surgery
    plan.drops = {**plan.drops, r"bn\.num_batches_tracked": "a counter that nothing reads: the momentum is fixed"}
    return plan


def spelled_out(config: dict[str, Any]) -> dict[str, Any]:
    """The generator's arguments where `args.json` names a model ("SiT-XL/1"), a VAE and a vision model."""
    if "hidden_size" in config:
        return config
    found = re.fullmatch(r"SiT-(\w+)/(\d+)", str(config.get("model")))
    kind = next((value for name, value in FACTORS.items() if name in str(config.get("vae", "f8d4"))), None)
    if found is None or found[1] not in SIZES or kind is None:
        raise ConversionError(f"Unknown model {config.get('model')!r} or vae {config.get('vae')!r}.")
    width, depth, heads = SIZES[found[1]]
    teachers = str(config.get("enc_type", "dinov2-vit-b")).split(",")
    return {
        "input_size": config.get("resolution", 256) // kind[0],
        "in_channels": kind[1],
        "patch_size": int(found[2]),
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "z_dims": [TEACHERS.get(teacher.rsplit("-", 1)[-1], 768) for teacher in teachers],
        "class_dropout_prob": config.get("cfg_prob", 0.1),
        **config,
    }


def sit_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields for the arguments of REPA-E's SiT."""
    config = spelled_out(config)
    width = config["hidden_size"]
    if config.get("decoder_hidden_size", width) != width:
        raise ConversionError("A decoder_hidden_size other than hidden_size is not published.")
    dropout = float(config.get("class_dropout_prob", 0.1))
    low, high = float(config.get("guidance_low", 0.0)), float(config.get("guidance_high", 0.75))
    return {
        "sample_size": config["input_size"],
        "patch_size": config.get("patch_size", 2),
        "in_channels": config["in_channels"],
        "hidden_size": width,
        "num_layers": config["depth"],
        "num_heads": config["num_heads"],
        "mlp_ratio": float(config.get("mlp_ratio", 4.0)),
        "num_classes": config.get("num_classes", 1000),
        "has_null_class": dropout > 0,
        "class_dropout": dropout,
        "qk_norm": "layer" if config.get("qk_norm", False) else None,
        "projector_dims": tuple(config.get("z_dims", (768,))),
        "projector_hidden_size": config.get("projector_dim", 2048),
        "projector_layer": config.get("encoder_depth", 8),
        "latent_norm": "batch",
        "noise_time": 1,
        "grid": "steps",
        "sampler": {"ode": "euler"}.get(config.get("mode"), config.get("mode", "sde")),
        "num_inference_steps": config.get("num_steps", 250),
        "guidance_scale": float(config.get("cfg_scale", 2.5)),
        "guidance_intervals": [[low, high]],
        "float64_state": True,
        "training_sampling": {"lognormal": "logit_normal"}.get(config.get("weighting"), "uniform"),
        "loss_weights": {"projection_loss": float(config.get("proj_coeff", 0.5))},
    }


class SendVaeAdapter(Adapter):
    """Bare state dicts of VAEs, and REPA-E's training checkpoints (`args.json` beside `checkpoints/*.pt`)."""

    system = "sendvae"
    config_files = ("config.json", "args.json")
    weight_files = ("model.safetensors", "model.pt")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The VAE's or the generator's arguments."""
        vae = {"embed_dim", "ch_mult", "use_variational"} <= set(config)
        if vae or config.get("arch") in ARCHITECTURES:
            return "tokenizer"
        named = str(config.get("model", "")).startswith("SiT-") and "enc_type" in config
        return "flow_generator" if named or {"input_size", "encoder_depth", "z_dims"} <= set(config) else None

    def wrappers_of(self, component: str) -> tuple[str, ...]:
        """A checkpoint of REPA-E holds the generator, its average and the VAE."""
        return ("vae", "state_dict") if component == "tokenizer" else self.wrappers

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names; the VAE's decoder is numbered from the other end."""
        if component == "flow_generator":
            return without_counter(flow_plan(sit_fields(config)))
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.sendvae.configuration_sendvae import SendVaeConfig
        from ..modeling.sendvae.modeling_sendvae import SendVaeModel

        fields = vae_fields(config)
        part = Part(SendVaeModel, SendVaeConfig(**fields))
        return Plan({"image_tokenizer": part}, VAE_RENAMES, VAE_DROPS, reverse_levels(len(fields["channel_mult"])))

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized, centre crop, [-1, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(vae_fields(config)["image_size"], (-1.0, 1.0))


def read_latent_statistics(path: str | os.PathLike) -> tuple[Any, Any]:
    """
    Mean and standard deviation of each channel from a file of the authors (`<name>-latents-stats.pt`).

    Raises:
        ConversionError: where the file holds something else.
    """
    from .loading import read_state_dict

    state = read_state_dict(str(path))
    if not {"latents_scale", "latents_bias"} <= set(state):
        raise ConversionError(f"{path} holds {sorted(state)}, not latents_scale and latents_bias.")
    return state["latents_bias"].flatten(), 1 / state["latents_scale"].flatten()


def sit_config(size: str, patch: int, side: int, channels: int) -> dict[str, Any]:
    """A published generator's arguments in the authors' shape."""
    width, depth, heads = SIZES[size]
    return {
        "path_type": "linear",
        "input_size": side,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "decoder_hidden_size": width,
        "encoder_depth": 8,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "class_dropout_prob": 0.1,
        "num_classes": 1000,
        "z_dims": [768],
        "projector_dim": 2048,
        "qk_norm": False,
    }


SendVaeAdapter.presets = {  # Send-VAE's own repository is not confirmed: these are the shapes that it names
    "vae_f16d32": Preset("tokenizer", {"arch": "f16d32"}, None, "vae.pt", unverified=True),
    "vae_f8d4": Preset("tokenizer", {"arch": "f8d4"}, None, "vae.pt", unverified=True),
    "sit-xl-1_f16d32": Preset("flow_generator", sit_config("XL", 1, 16, 32), None, "model.pt", unverified=True),
}

ADAPTER = SendVaeAdapter()

"""Original checkpoints of FlexTok: hydra configurations, whose `_target_`s are looked up in a table and never run."""

import re
from typing import Any

from .adapter import Adapter, ConversionError, Part, Plan, Preset, State

SDXL_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
# Names of the authors' modules by the class that their configuration names.
ROLES = {
    "PatchEmbedder": "patch_embed",
    "PositionalEmbeddingAdder": "positions",
    "Registers1D": "registers",
    "BlockWiseSequencePacker": "packer",
    "FlexTransformer": "transformer",
    "LinearHead": "head",
    "ToPatchesLinearHead": "head",
    "LinearLayer": "token_embed",
    "MaskedNestedDropout": "nested_dropout",
    "LearnedNullCond": "null_condition",
    "TimestepEmbedder": "time",
}
WITHOUT_WEIGHTS = ("SequenceUnpacker",)
POSITION_KINDS = {"sincos": "sincos", "learnable_sum": "learned"}
BLOCK_RENAMES = [
    (r"\.mlp\.fc(\d)\.", r".mlp.w\1."),
    (r"\.adaLN_modulation\.1\.", ".modulation."),
]


def target(node: dict[str, Any]) -> str:
    """The last part of a node's `_target_`: the name of the authors' class."""
    return str(node.get("_target_", "")).rsplit(".", 1)[-1]


def modules_of(part: dict[str, Any], side: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """
    Modules of an encoder or decoder by role: their own name and configuration.

    Positions are "patch_positions" (two sizes, on patches) or "token_positions" (one size, or on tokens).
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    patch_key = next(
        (node.get("patches_list_write_key") for node in part.values() if target(node) == "PatchEmbedder"), None
    )
    for name, node in part.items():
        role = ROLES.get(target(node))
        if role is None:
            if target(node) in WITHOUT_WEIGHTS or ".dict_ops." in str(node.get("_target_")):
                continue  # the order of axes, and sums: the model knows them
            raise ConversionError(f"{side} module {name!r} is a {node.get('_target_')!r}, which is not known.")
        if role == "positions":
            on_patches = node.get("write_key", patch_key) == patch_key and len(node["max_sizes"]) == 2
            role = "patch_positions" if on_patches else "token_positions"
        if role in found:
            raise ConversionError(f"{side} has two modules of the kind {role}: {found[role][0]!r} and {name!r}.")
        found[role] = (name, node)
    missing = [role for role in ("patch_embed", "patch_positions", "transformer", "head") if role not in found]
    if missing:
        raise ConversionError(f"{side} has no module of the kind {', '.join(missing)}.")
    return found


def position_kind(node: dict[str, Any]) -> str:
    """Our name of a kind of positions."""
    kind, scaling = node["posemb_type"], node.get("posemb_scaling", "absolute")
    if kind not in POSITION_KINDS or scaling != "absolute":
        raise ConversionError(f"Positions {kind!r} with {scaling!r} scaling are not known.")
    return POSITION_KINDS[kind]


def vae_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `AutoencoderKL`: the published shape, and the scaling factor of the wrapper if it has one."""
    wrapper = config.get("vae") or {}
    own = config.get("fixture_overrides", {}).get("vae") or wrapper.get("vae_config") or {}
    fields = {**SDXL_VAE, "latent_channels": wrapper.get("latent_channels", 16)}
    fields |= {name: value for name, value in own.items() if not name.startswith("_")}
    if wrapper.get("scaling_factor") is not None:
        fields["scaling_factor"] = wrapper["scaling_factor"]
    if fields.get("scaling_factor") is None:
        fields.pop("scaling_factor", None)
    return fields


def _patch(node: dict[str, Any]) -> int:
    rows, columns = node["patch_sizes"]
    if rows != columns:
        raise ConversionError(f"Patches must be square, got {rows} x {columns}.")
    return rows


def _side(node: dict[str, Any]) -> int:
    rows, columns = node["max_sizes"]
    if rows != columns:
        raise ConversionError(f"Position tables must be square, got {rows} x {columns}.")
    return rows


def _check_head(node: dict[str, Any]) -> None:
    if node.get("use_mup_readout"):
        raise ConversionError("use_mup_readout=True is not known: no published checkpoint has it.")


def encoder_fields(config: dict[str, Any], modules: dict[str, Any]) -> dict[str, Any]:
    """Arguments of [`FlexTokEncoder`]."""
    patch, trunk = modules["patch_embed"][1], modules["transformer"][1]
    registers = modules.get("registers", (None, {"n_max": 0}))[1]
    mode = modules.get("packer", (None, {}))[1].get("mask_mode", "full")
    if mode not in ("causal_last", "full"):
        raise ConversionError(f"Encoder mask mode {mode!r} is not known.")
    _check_head(modules["head"][1])
    return {
        "in_channels": patch["channels_in"],
        "sample_size": _side(modules["patch_positions"][1]) * _patch(patch),
        "patch_size": _patch(patch),
        "hidden_size": trunk["dim"],
        "num_layers": trunk["depth"],
        "head_dim": trunk["head_dim"],
        "num_registers": registers["n_max"],
        "causal_registers": mode == "causal_last",
        "positions": position_kind(modules["patch_positions"][1]),
        "out_dim": modules["head"][1]["dim_out"],
    }


def transformer_fields(config: dict[str, Any], modules: dict[str, Any], num_registers: int) -> dict[str, Any]:
    """Arguments of [`FlexTokTransformer`]."""
    patch, trunk, time = (modules[name][1] for name in ("patch_embed", "transformer", "time"))
    side = _side(modules["patch_positions"][1])
    mode = modules.get("packer", (None, {}))[1].get("mask_mode", "full")
    if mode != "full":
        raise ConversionError(f"Decoder mask mode {mode!r} is not known.")
    _check_head(modules["head"][1])
    positions = modules.get("token_positions")
    layers = trunk.get("intermediate_layers") or []
    return {
        "in_channels": patch["channels_in"],
        "sample_size": side * _patch(patch),
        "patch_size": _patch(patch),
        "hidden_size": trunk["dim"],
        "num_layers": trunk["depth"],
        "head_dim": trunk["head_dim"],
        "fsq_levels": list(config["regularizer"]["levels"]),
        "num_tokens": num_registers or side * side,
        "token_layout": "registers" if num_registers else "grid",
        "nested_dropout": "nested_dropout" in modules,
        "null_condition": "null_condition" in modules,
        "positions": position_kind(modules["patch_positions"][1]),
        "token_positions": position_kind(positions[1]) if positions else "none",
        "modulation_streams": trunk.get("adaLN_expansion", 1),
        "head_modulation": bool(modules["head"][1].get("adaLN_emb_read_key")),
        "frequency_dim": time.get("frequency_embedding_size", 256),
        "max_timestep": float(time.get("max_timestep", 1.0)),
        "feature_layer": layers[0] if layers else None,
    }


def training_fields(config: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    """The training options that the authors' configuration states."""
    noise, fsq = config.get("flow_matching_noise_module") or {}, config["regularizer"]
    nested = decoder.get("nested_dropout", (None, {}))[1]
    null = decoder.get("null_condition", (None, {}))[1]
    return {
        "nested_sampling": "uniform_pow2" if "pow" in nested.get("size_sampling_mode", "pow2") else "uniform",
        "condition_dropout": float(null.get("dropout_prob", 0.0)),
        "quantizer_dropout": float(fsq.get("drop_quant_p") or 0.0),
        "token_corruption": float(fsq.get("corrupt_tokens_p") or 0.0),
        "timestep_sampling": "logit_normal" if noise.get("ln") else "mode",
        "mode_scale": float(noise.get("mode_scale") or 0.0),
    }


def module_renames(encoder: dict[str, Any], decoder: dict[str, Any]) -> list[tuple[str, str]]:
    """Names of the authors' modules, which their configuration chooses, to ours."""
    renames = [(r"^vae\.vae\.", "vae.")]
    leaves = {
        "patch_embed": (r"patch_proj\.", "patch_embed."),
        "patch_positions": (r"posembs$", "patch_position_table.table"),
        "token_positions": (r"posembs$", "token_position_table.table"),
        "registers": (r"registers$", "registers"),
        "token_embed": (r"proj\.", "token_embed."),
        "nested_dropout": (r"dropout_mask_token$", "mask_token"),
        "null_condition": (r"nullcond$", "null_token"),
        "transformer": (r"blocks\.", "layers."),
    }
    for part, ours, modules in (("encoder", "encoder", encoder), ("decoder", "transformer", decoder)):
        for role, (name, _) in modules.items():
            prefix = rf"^{part}\.module_dict\.{re.escape(name)}\."
            if role in leaves:
                renames.append((prefix + leaves[role][0], f"{ours}.{leaves[role][1]}"))
            elif role == "head":
                renames.append((prefix + r"adaLN_modulation\.1\.", f"{ours}.modulation_out."))
                renames.append((prefix + r"proj\.", f"{ours}.proj_out."))
            elif role == "time":
                renames.append((prefix + r"mlp\.0\.", f"{ours}.time_embed.fc1."))
                renames.append((prefix + r"mlp\.2\.", f"{ours}.time_embed.fc2."))
    return renames + BLOCK_RENAMES


def join_qkv(state: State) -> State:
    """The authors' three matrices wq, wk, wv as one."""
    import torch

    joined: State = {}
    for name, tensor in state.items():
        if name.endswith(".attn.wq.weight"):
            stem = name.removesuffix("wq.weight")
            parts = [state.get(f"{stem}w{letter}.weight") for letter in "qkv"]
            if all(part is not None for part in parts):
                joined[f"{stem}qkv.weight"] = torch.cat(parts)
                continue
        elif re.search(r"\.attn\.w[kv]\.weight$", name) and f"{name.rsplit('.w', 2)[0]}.wq.weight" in state:
            continue
        joined[name] = tensor
    return joined


class FlexTokAdapter(Adapter):
    """FlexTok tokenizers, their grid variant, and the VAEs published beside them."""

    system = "flextok"
    weight_files = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")

    def recognise(self, config: dict[str, Any]) -> str | None:
        """A hydra configuration with the four parts of FlexTok."""
        parts = {"vae", "encoder", "decoder", "regularizer"}
        nested = isinstance(config.get("decoder"), dict) and "module_dict" in config["decoder"]
        return "tokenizer" if parts <= set(config) and nested else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A tokenizer, or ("vae") one of the published VAEs."""
        from diffusers import AutoencoderKL

        if component == "vae":
            return Plan({"vae": Part(AutoencoderKL, vae_fields(config))})
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.flextok.configuration_flextok import FlexTokConfig
        from ..modeling.flextok.modeling_flextok import FlexTokModel

        encoder = modules_of(config["encoder"]["module_dict"], "encoder")
        decoder = modules_of(config["decoder"]["module_dict"], "decoder")
        encoder_config, vae = encoder_fields(config, encoder), vae_fields(config)
        ours = FlexTokConfig(
            image_size=encoder_config["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
            encoder_config=encoder_config,
            transformer_config=transformer_fields(config, decoder, encoder_config["num_registers"]),
            vae_config=vae,
            **training_fields(config, decoder),
        )
        # what a text-to-image pipeline takes from a tokenizer
        views = {"transformer": "transformer", "vae": "vae", "image_encoder": "encoder"}
        return Plan(
            {"image_tokenizer": Part(FlexTokModel, ours)},
            module_renames(encoder, decoder),
            surgery=join_qkv,
            views=views,
        )

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bilinear), centre crop, [-1, 1]."""
        from PIL import Image

        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        size = self.plan(component, config).parts["image_tokenizer"].config.image_size
        return ImageTokenizerProcessor.for_size(size, (-1.0, 1.0), resample=Image.Resampling.BILINEAR)


def tokenizer_config(encoder_depth: int, decoder_depth: int, channels: int = 16) -> dict[str, Any]:
    """A published configuration as far as it matters; the width is 64 times the depth."""
    encoder_dim, decoder_dim = 64 * encoder_depth, 64 * decoder_depth
    return {
        "_target_": "flextok.flextok_wrapper.FlexTok",
        "vae": {"latent_channels": channels},
        "encoder": {
            "module_dict": {
                "enc_patch_emb": _node("PatchEmbedder", channels_in=channels, patch_sizes=[2, 2]),
                "enc_posemb_module": _node("PositionalEmbeddingAdder", max_sizes=[16, 16], posemb_type="sincos"),
                "enc_register_module": _node("Registers1D", n_max=256),
                "enc_seq_packer": _node("BlockWiseSequencePacker", mask_mode="causal_last"),
                "enc_transformer": _node("FlexTransformer", dim=encoder_dim, depth=encoder_depth, head_dim=64),
                "enc_to_latents": _node("LinearHead", dim_out=6),
            }
        },
        "decoder": {
            "module_dict": {
                "dec_from_latents": _node("LinearLayer", dim_in=6),
                "dec_registers_posemb_module": _node(
                    "PositionalEmbeddingAdder", max_sizes=[256], posemb_type="learnable_sum"
                ),
                "dec_nested_dropout": _node("MaskedNestedDropout", size_sampling_mode="uniform_pow2"),
                "dec_latent_dropout": _node("LearnedNullCond", dropout_prob=0.2),
                "dec_noise_patch_emb": _node("PatchEmbedder", channels_in=channels, patch_sizes=[2, 2]),
                "dec_patches_posemb_module": _node(
                    "PositionalEmbeddingAdder", max_sizes=[16, 16], posemb_type="sincos"
                ),
                "dec_seq_packer": _node("BlockWiseSequencePacker", mask_mode="full"),
                "dec_time_embedder": _node("TimestepEmbedder", frequency_embedding_size=256, max_timestep=1.0),
                "dec_transformer": _node(
                    "FlexTransformer",
                    dim=decoder_dim,
                    depth=decoder_depth,
                    head_dim=64,
                    adaLN_expansion=2,
                    intermediate_layers=[1],
                ),
                "dec_to_patches": _node("ToPatchesLinearHead", adaLN_emb_read_key="dec_time_embs"),
            }
        },
        "regularizer": {"levels": [8, 8, 8, 5, 5, 5]},
        "flow_matching_noise_module": {"ln": False, "mode_scale": 0.25},
    }


def _node(name: str, **fields: Any) -> dict[str, Any]:
    return {"_target_": name, **fields}


FlexTokAdapter.presets = {
    f"flextok_{name}": Preset("tokenizer", tokenizer_config(*depths), f"EPFL-VILAB/flextok_{name}", unverified=True)
    for name, depths in (
        ("d12_d12_in1k", (12, 12)),
        ("d18_d18_in1k", (18, 18)),
        ("d18_d28_in1k", (18, 28)),
        ("d18_d28_dfn", (18, 28)),
    )
} | {
    f"flextok_vae_c{channels}": Preset(
        "vae",
        {"vae": {"latent_channels": channels}},
        f"EPFL-VILAB/flextok_vae_c{channels}",
        "diffusion_pytorch_model.safetensors",
        unverified=True,
    )
    for channels in (4, 8, 16)
}

ADAPTER = FlexTokAdapter()

"""Original checkpoints of COMiT: predictor and VAE in one file."""

from typing import Any

from .adapter import Adapter, Part, Plan, Preset

SD_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "sample_size": 256,
}
RENAMES = [
    (r"^vae\.vae\.", "vae."),
    (r"^predictor\.", "transformer."),
    (r"^transformer\.blocks\.", "transformer.layers."),
    (r"^transformer\.x_embedder\.proj\.", "transformer.patch_embed."),
    (r"^transformer\.r_embedder\.", "transformer.message_embed."),
    (r"^transformer\.c_embedder\.", "transformer.offset_embed."),
    (r"^transformer\.t_embedder\.mlp\.0\.", "transformer.time_embed.fc1."),
    (r"^transformer\.t_embedder\.mlp\.2\.", "transformer.time_embed.fc2."),
    (r"^transformer\.c_pos_embed$", "transformer.offset_position"),
    (r"^transformer\.r_pos_embed$", "transformer.message_position"),
    (r"^transformer\.r_to_token$", "transformer.new_token"),
    (r"^transformer\.r_to_pos_embed$", "transformer.new_position"),
    (r"\.x_adaLN_modulation\.1\.", ".image_modulation.linear."),
    (r"\.r_adaLN_modulation\.1\.", ".message_modulation.linear."),
    (r"^transformer\.final_layer\.adaLN_modulation\.1\.", "transformer.velocity_head.modulation.linear."),
    (r"^transformer\.final_layer\.linear\.", "transformer.velocity_head.proj."),
    (r"^transformer\.r_final_layer\.linear\.", "transformer.message_head."),
    (r"^transformer\.c_final_layer\.linear\.", "transformer.location_head."),
]
DROPS = {
    r"predictor\.pos_embed": "the fixed table of sines and cosines, computed here",
    r"predictor\.y_pos_offset": "stored and never read",
    r"vae\.vae\.encoder\.mid_block\.attentions\.0\.to_k\.bias": "a bias of keys adds one number to all scores of a "
    "query, which changes nothing: zeros here",
}


def comit_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of our configuration for the authors' `config.json`."""
    predictor, overrides = config["predictor"], config.get("fixture_overrides", {})
    vae = {**SD_VAE, **overrides.get("vae", {})}
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        "image_size": predictor["max_input_size"] * factor,
        "hidden_size": predictor["hidden_size"],
        "num_layers": predictor["depth"],
        "num_heads": predictor["num_heads"],
        "mlp_ratio": float(predictor.get("mlp_ratio", 4.0)),
        "latent_size": predictor["max_input_size"],
        "latent_channels": predictor["in_channels"],
        "patch_size": predictor["patch_size"],
        "num_latent_tokens": predictor["num_msg_tokens"],
        "fsq_levels": tuple(config["quantizer"]["levels"]),
        "representation_layer": predictor.get("representation_layer", 8),
        "vae_config": vae,
    }


def _zero_key_bias(state: dict[str, Any]) -> dict[str, Any]:
    name = "vae.encoder.mid_block.attentions.0.to_{}.bias"
    if name.format("q") in state:
        state[name.format("k")] = state[name.format("q")].new_zeros(state[name.format("q")].shape)
    return state


class ComitAdapter(Adapter):
    """COMiT."""

    system = "comit"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """Hydra targets of its predictor."""
        predictor = config.get("predictor")
        target = predictor.get("_target_", "") if isinstance(predictor, dict) else ""
        return "tokenizer" if target.startswith("comit.") or "num_msg_tokens" in (predictor or {}) else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """A table of names."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.comit.configuration_comit import ComitConfig
        from ..modeling.comit.modeling_comit import ComitModel

        ours = ComitConfig(**comit_fields(config))
        return Plan({"image_tokenizer": Part(ComitModel, ours)}, RENAMES, DROPS, _zero_key_bias, {"vae": "vae"})

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized, centre crop, [-1, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        if component != "tokenizer":
            return None
        return ImageTokenizerProcessor.for_size(comit_fields(config)["image_size"], pixel_range=(-1.0, 1.0))


def tokenizer_config(width: int, depth: int, heads: int) -> dict[str, Any]:
    """A configuration as the authors write it."""
    predictor = {
        "_target_": "comit.components.predictor.dit.RuledDiT",
        "max_input_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "num_msg_tokens": 256,
        "msg_tokens_dim": 6,
        "representation_layer": 8,
    }
    return {"predictor": predictor, "quantizer": {"levels": [8, 8, 8, 5, 5, 5]}, "vae": {"model_type": "ema"}}


# Heads and the VAE's kind could not be read from the published files.
ComitAdapter.presets = {
    name: Preset("tokenizer", tokenizer_config(*sizes), f"cvg-unibe/{name}", unverified=True)
    for name, sizes in {"comit-b": (768, 12, 12), "comit-l": (1024, 24, 16), "comit-xl": (1152, 28, 16)}.items()
}

ADAPTER = ComitAdapter()

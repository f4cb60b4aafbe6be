"""Original checkpoints of One-D-Piece: TiTok's layout with `model.type`, always in its two-stage or stage-1 form."""

from typing import Any

from .adapter import Plan, Preset
from .titok import TWO_STAGE, TiTokAdapter, generator_config, titok_config_fields, titok_plan, tokenizer_config


class OneDPieceAdapter(TiTokAdapter):
    """One-D-Piece; its priors have TiTok's layout and are read by the same code."""

    system = "one_d_piece"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """A tokenizer configuration with `model.type = "one_d_piece"`."""
        model = config.get("model")
        return "tokenizer" if isinstance(model, dict) and model.get("type") == "one_d_piece" else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """TiTok's plan with our subclass; the original has only the scrambled layout."""
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.one_d_piece.configuration_one_d_piece import OneDPieceConfig
        from ..modeling.one_d_piece.modeling_one_d_piece import OneDPieceModel

        return titok_plan(OneDPieceModel, OneDPieceConfig(**titok_config_fields(config)))


def _tokenizer(size: str) -> Preset:
    config = tokenizer_config(size, size, 256, **TWO_STAGE, strict_length_assertion=False)
    config["model"]["type"] = "one_d_piece"
    return Preset("tokenizer", config, f"turing-motors/One-D-Piece-{size[0].upper()}-256")


def _generator(letter: str, scale: float, temperature: float) -> Preset:
    config = generator_config(
        "ViT", 256, num_steps=16, guidance_scale=scale, guidance_decay="power-cosine", randomize_temperature=temperature
    )
    return Preset("masked_prior", config, f"turing-motors/MaskGIT_One-D-Piece-{letter}-256")


OneDPieceAdapter.presets = {
    **{f"One-D-Piece-{size[0].upper()}-256": _tokenizer(size) for size in ("large", "base", "small")},
    "MaskGIT_One-D-Piece-L-256": _generator("L", 5.5, 3.0),
    "MaskGIT_One-D-Piece-B-256": _generator("B", 8.5, 2.5),
    "MaskGIT_One-D-Piece-S-256": _generator("S", 12.5, 3.0),
}

ADAPTER = OneDPieceAdapter()

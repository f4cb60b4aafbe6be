"""Configuration of FlexTok."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict

from ..configuration_utils import ImageTokenizerConfig

TIMESTEP_SAMPLING = ("uniform", "mode", "logit_normal")


@strict
class FlexTokConfig(ImageTokenizerConfig):
    r"""
    Configuration of [`FlexTokModel`]: of its three networks, and of its training.

    Args:
        encoder_config (`dict`, *optional*): arguments of the encoder; `None` for a tokenizer that only decodes.
        encoder_type (`str`): "transformer" ([`FlexTokEncoder`]) or "linear" ([`FlexTokLinearEncoder`], ours).
        transformer_config (`dict`): arguments of [`FlexTokTransformer`], the flow decoder.
        vae_config (`dict`): arguments of diffusers' `AutoencoderKL`; its `scaling_factor` scales the latents.
        nested_sampling (`str`): lengths of nested dropout in training, "uniform" or "uniform_pow2".
        condition_dropout (`float`): share of pictures that train without tokens (and text).
        text_dropout (`float`): share of pictures that train without text, besides those.
        quantizer_dropout (`float`): share of pictures whose codes are bounded but not rounded in training.
        token_corruption (`float`): share of tokens replaced by random ones in training.
        token_swap (`float`): share of pictures that train with the tokens of another picture: a decoder with a text
            learns to doubt tokens that do not fit it.
        corruption_max_tokens (`int`): both only where at most so many tokens are kept, 0 for everywhere: what a prior
            writes may be wrong, what the encoder wrote is not.
        timestep_sampling (`str`), mode_scale, timestep_mean, timestep_std (`float`): how training times are drawn, see
            `layers.flow.training_times`.
        pure_noise (`float`): share of pictures that train at time 1.
        min_loss_timestep (`float`): where the decoder predicts the data, errors at times below this one weigh less.
        alignment_dim (`int`), alignment_hidden_dim (`int`): widths of a teacher's features and of the MLP of the
            alignment loss (REPA, arXiv 2410.06940); 0 features for no such loss. Published
            checkpoints lack this head.
        loss_weights (`dict`, *optional*): weights of the terms that `forward` returns; those not named weigh 1.
    """

    model_type = "vistok_flextok"

    pixel_range: tuple[float, ...] | list[float] | None = (-1.0, 1.0)
    encoder_config: dict[str, Any] | None = field(default_factory=dict)
    encoder_type: str = "transformer"
    transformer_config: dict[str, Any] = field(default_factory=dict)
    vae_config: dict[str, Any] = field(default_factory=dict)
    nested_sampling: str = "uniform_pow2"
    condition_dropout: float = 0.2
    text_dropout: float = 0.0
    quantizer_dropout: float = 0.0
    token_corruption: float = 0.0
    token_swap: float = 0.0
    corruption_max_tokens: int = 0
    timestep_sampling: str = "mode"
    mode_scale: float = 0.25
    timestep_mean: float = 0.0
    timestep_std: float = 1.0
    pure_noise: float = 0.0
    min_loss_timestep: float = 0.15
    alignment_dim: int = 0
    alignment_hidden_dim: int = 2048
    loss_weights: dict[str, Any] | None = None

    def validate_options(self) -> None:
        """Raises a ValueError for an unknown encoder, or way to draw times or lengths."""
        if self.encoder_type not in ("transformer", "linear"):
            raise ValueError(f'encoder_type must be "transformer" or "linear", got {self.encoder_type!r}.')
        if self.timestep_sampling not in TIMESTEP_SAMPLING:
            raise ValueError(f"timestep_sampling must be one of {TIMESTEP_SAMPLING}, got {self.timestep_sampling!r}.")
        if self.nested_sampling not in ("uniform", "uniform_pow2"):
            raise ValueError(f'nested_sampling must be "uniform" or "uniform_pow2", got {self.nested_sampling!r}.')

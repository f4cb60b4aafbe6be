"""FlexAR and GridAR (FlexTok, arXiv 2502.13967, section 4.2): GPT-like priors over FlexTok ids."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..ar_prior_utils import Condition, PreTrainedARPrior
from ..layers.attention import Mlp
from ..layers.causal import CausalAttention, CrossAttention
from ..layers.generation import Window
from ..layers.losses import next_token_loss
from ..layers.mlp import SwiGLU
from ..layers.norm import GainBiasLayerNorm, RMSNorm
from ..layers.positions import sincos_table
from ..outputs import ImagePriorOutput
from .configuration_flextok_ar import FlexARConfig


def make_norm(kind: str, dim: int, eps: float, gain: bool = True, bias: bool = True) -> nn.Module:
    """A norm by its name in [`FlexARConfig`]."""
    if kind == "rms_norm":
        return RMSNorm(dim, eps)
    if kind == "layer_norm" and gain:
        return nn.LayerNorm(dim, eps=eps, bias=bias)
    return GainBiasLayerNorm(dim, eps, gain=gain, bias=bias)


def head_norms(config: FlexARConfig, name: str, width: int) -> dict[str, nn.Module]:
    """The norms of q and k that the fields `name`, `name_eps`, ... describe; none where it is None."""
    kind = getattr(config, name)
    options = [getattr(config, f"{name}_{part}") for part in ("eps", "gain", "bias")]
    return {} if kind is None else {part: make_norm(kind, width, *options) for part in ("q_norm", "k_norm")}


class FlexARBlock(GradientCheckpointingLayer):
    """`x += attn(norm1(x))`; with text also `x += cross_attn(norm_cross(x), text)`; `x += mlp(norm2(x))`."""

    def __init__(self, config: FlexARConfig, layer_idx: int) -> None:
        super().__init__()
        dim, heads = config.hidden_size, config.num_attention_heads

        def norm() -> nn.Module:
            return make_norm(config.norm, dim, config.norm_eps, config.norm_gain, config.norm_bias)

        self.norm1 = norm()
        self.attn = CausalAttention(
            dim,
            heads,
            layer_idx,
            qkv_bias=config.qkv_bias,
            proj_bias=config.proj_bias,
            config=config,
            **head_norms(config, "qk_norm", dim // heads),
        )
        self.cross_attn = None
        if config.condition == "text":
            heads = config.num_cross_attention_heads or heads
            self.norm_cross = norm()
            self.cross_attn = CrossAttention(
                dim,
                heads,
                q_bias=config.cross_qkv_bias,
                kv_bias=config.cross_qkv_bias,
                proj_bias=config.cross_proj_bias,
                config=config,
                **head_norms(config, "cross_qk_norm", dim // heads),
            )
        self.norm2 = norm()
        layer = SwiGLU if config.feed_forward == "swiglu" else Mlp
        self.mlp = layer(dim, config.ffn_size, bias=config.ffn_bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        text_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """`(B, n, D)` to `(B, n, D)`; `keys_values` of the text from `cross_attn.keys_values`."""
        x = x + self.attn(self.norm1(x), mask, cache=cache)
        if self.cross_attn is not None:
            x = x + self.cross_attn(self.norm_cross(x), keys_values, text_mask)
        return x + self.mlp(self.norm2(x))


class TextProjection(nn.Module):
    """Linear, tanh-GELU, Linear: text features to the width of the transformer."""

    def __init__(self, text_dim: int, dim: int, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(text_dim, text_dim, bias=bias)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(text_dim, dim, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(B, T, text_dim)` to `(B, T, D)`."""
        return self.fc2(self.act(self.fc1(features)))


class FlexARPrior(PreTrainedARPrior):
    """
    Writes FlexTok ids, coarse to fine (or, as GridAR, in raster order), from a class or a text.

    The null class (-1) adds nothing to the start token. The null text are the features of the empty
    string, which this model does not hold: guidance needs `negative_encoder_hidden_states`; pipelines compute them.
    """

    config: FlexARConfig
    _no_split_modules = ["FlexARBlock"]
    text_padding_side = "right"

    def __init__(self, config: FlexARConfig) -> None:
        super().__init__(config)
        dim = config.hidden_size
        self.token_embedding = nn.Embedding(config.codebook_size, dim)
        self.start_token = nn.Parameter(torch.empty(dim))
        self.position_embedding = nn.Parameter(
            torch.empty(config.num_image_tokens, dim), requires_grad=config.positions == "learned"
        )
        self.class_embedding = nn.Embedding(config.num_classes, dim) if config.condition == "class" else None
        self.text_projection = None
        if config.condition == "text":
            self.text_projection = TextProjection(config.text_dim, dim, config.text_projection_bias)
        self.layers = nn.ModuleList(FlexARBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.Identity()
        if config.final_norm:
            self.norm = make_norm(config.norm, dim, config.norm_eps, config.norm_gain, config.norm_bias)
        self.head_norm = nn.LayerNorm(dim, eps=1e-5) if config.head_norm else nn.Identity()
        self.lm_head = nn.Linear(dim, config.codebook_size, bias=config.head_bias)
        self.post_init()

    @property
    def default_settings(self) -> dict[str, Any]:
        """Sampling of the authors: guidance 3.0 from a text, 1.5 from a class; no filters."""
        scale = 3.0 if self.is_text_conditional else 1.5
        return {**PreTrainedARPrior.default_settings, "cfg_scale": scale}

    @property
    def is_text_conditional(self) -> bool:
        """Whether the condition is a text and not a class."""
        return self.config.condition == "text"

    @property
    def text_length(self) -> int | None:
        """Number of text features that prompts are padded or cut to; None without text."""
        return self.config.text_length if self.is_text_conditional else None

    @property
    def needs_negative_text(self) -> bool:
        """The features of the empty string are not stored."""
        return self.is_text_conditional

    def init_own_weights(self) -> None:
        """Fresh values of the start token and the positions."""
        std = self.config.initializer_range
        init.normal_(self.start_token, std=std)
        if self.config.positions == "learned":
            init.normal_(self.position_embedding, std=std)
        else:
            init.copy_(self.position_embedding, self.make_positions(self.config, self.position_embedding.device))

    @staticmethod
    def make_positions(config: FlexARConfig, device: torch.device | str | None = None) -> Tensor:
        """The fixed table: 0 at the start token, then the positions of all tokens but the last."""
        grid = tuple(config.token_grid) if config.positions == "sincos_2d" else (config.num_image_tokens,)
        table = sincos_table(grid, config.hidden_size, device=device)
        return torch.cat([torch.zeros_like(table[:1]), table[:-1]])

    # ------------------------------------------------------------------ conditions

    def condition(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Condition:
        """The label, or text features `(B, T, text_dim)` with a bool mask `(B, T)`."""
        name = type(self).__name__
        if not self.is_text_conditional:
            if class_labels is None or encoder_hidden_states is not None:
                raise ValueError(f"{name} is conditioned on classes: give class_labels and no text.")
            return {"class_labels": self.check_class_labels(class_labels)}
        if encoder_hidden_states is None or class_labels is not None:
            raise ValueError(f"{name} is conditioned on text: give encoder_hidden_states.")
        if encoder_hidden_states.shape[2] != self.config.text_dim:
            raise ValueError(
                f"{name} takes text features of width {self.config.text_dim}, got {encoder_hidden_states.shape[2]}."
            )
        features, mask = encoder_hidden_states.to(self.device, self.dtype), encoder_attention_mask
        mask = torch.ones(features.shape[:2], dtype=torch.bool) if mask is None else mask > 0
        return {"encoder_hidden_states": features, "encoder_attention_mask": mask.to(self.device)}

    def null_condition(self, condition: Condition) -> Condition:
        """
        The label that guidance leads away from: `config.guidance_class`.

        Raises:
            ValueError: for text: the features of the empty string have to be given.
        """
        if self.is_text_conditional:
            raise ValueError(
                "Guidance away from no text needs negative_encoder_hidden_states (and their mask): the features of the "
                'empty string "". Give them, or cfg_scale=1.0.'
            )
        return {"class_labels": torch.full_like(condition["class_labels"], self.config.guidance_class)}

    # ------------------------------------------------------------------ the transformer

    def _text(self, condition: Condition) -> tuple[list[Any], Tensor | None]:
        """Keys and values of each layer, computed once and kept in `condition`, and the mask `(B, 1, 1, T)`."""
        if not self.is_text_conditional:
            return [None] * len(self.layers), None
        if "keys_values" not in condition:
            context = self.text_projection(condition["encoder_hidden_states"])
            condition["keys_values"] = [layer.cross_attn.keys_values(context) for layer in self.layers]
        return condition["keys_values"], condition["encoder_attention_mask"][:, None, None]

    def trunk(self, x: Tensor, condition: Condition, cache: Cache | None = None, start: bool = False) -> Tensor:
        """
        Hidden states of the next positions.

        Args:
            x: embeddings `(B, n, D)` without positions.
            condition: see [`condition`].
            cache: key-value cache.
            start: whether the first of the positions is the start token.

        Returns:
            `(B, n, D)`, after the last norm.
        """
        window = Window.causal(x.shape[1], cache, x.device)
        x = x + self.position_embedding[window.positions]
        if start and self.class_embedding is not None:
            labels = condition["class_labels"][:, None]
            added = self.class_embedding(labels.clamp_min(0)) * (labels >= 0)[..., None]
            x = torch.cat([x[:, :1] + added, x[:, 1:]], 1)
        keys_values, text_mask = self._text(condition)
        for layer, text in zip(self.layers, keys_values, strict=True):
            x = layer(x, window.mask, text, text_mask, cache)
        return self.norm(x)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.head_norm(hidden))

    def _with_start(self, token_ids: Tensor | None, batch: int) -> Tensor:
        start = self.start_token.expand(batch, 1, -1)
        return start if token_ids is None else torch.cat([start, self.token_embedding(token_ids)], 1)

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """See the base class."""
        x = self._with_start(token_ids, self.batch_size(condition))
        return self._head(self.trunk(x, condition, cache, start=True)[:, -1:])

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """See the base class."""
        return self._head(self.trunk(self.token_embedding(token_ids), condition, cache))

    # ------------------------------------------------------------------ training

    def forward(
        self,
        token_ids: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        negative_encoder_hidden_states: Tensor | None = None,
        negative_encoder_attention_mask: Tensor | None = None,
        null: bool = False,
        **kwargs: Any,
    ) -> ImagePriorOutput:
        """
        Logits of every position given the ids before it, and the next-token loss.

        Args:
            token_ids: int64 `(B, N)`, N up to `config.num_image_tokens`.
            class_labels: int64 `(B,)`.
            encoder_hidden_states, encoder_attention_mask: the text.
            negative_encoder_hidden_states, negative_encoder_attention_mask: the empty string, one row; in training mode
                it takes the place of a share of `config.condition_dropout` texts. Classes need none.
            null: put the null class in place of the given one.

        Returns:
            [`ImagePriorOutput`] with `logits` `(B, N, V)` and the loss `cross_entropy`.
        """
        condition = self.condition(class_labels, encoder_hidden_states, encoder_attention_mask)
        if null:
            condition = self._no_class(condition)
        elif self.training and self.config.condition_dropout:
            condition = self._drop(condition, negative_encoder_hidden_states, negative_encoder_attention_mask)
        x = self._with_start(self._corrupted(token_ids[:, :-1]), len(token_ids))
        logits = self._head(self.trunk(x, condition, start=True))
        loss = next_token_loss(logits, token_ids)
        return ImagePriorOutput(logits=logits, loss=loss, losses={"cross_entropy": loss})

    def _corrupted(self, token_ids: Tensor) -> Tensor:
        if not (self.training and self.config.token_corruption):
            return token_ids
        wrong = torch.rand(token_ids.shape, device=token_ids.device) < self.config.token_corruption
        return torch.where(wrong, torch.randint_like(token_ids, self.config.codebook_size), token_ids)

    def _no_class(self, condition: Condition) -> Condition:
        if self.is_text_conditional:
            return self.null_condition(condition)
        return {"class_labels": torch.full_like(condition["class_labels"], -1)}

    def _drop(self, condition: Condition, states: Tensor | None, mask: Tensor | None) -> Condition:
        null = None if self.is_text_conditional else self._no_class(condition)
        if self.is_text_conditional:
            if states is None:
                return condition
            null = self.condition(None, states, mask)
            batch = self.batch_size(condition)
            both = self.join_conditions(condition, null)  # pads both to one length
            condition = {name: value[:batch] for name, value in both.items()}
            null = {name: value[batch:] for name, value in both.items()}
        return self.drop_conditions(condition, self.config.condition_dropout, null)

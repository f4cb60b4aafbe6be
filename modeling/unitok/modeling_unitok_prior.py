"""The prior of UniTok (arXiv 2502.20321) and MedITok: LlamaGen's trunk, and a head over the ids of a position."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from ..ar_prior_utils import Condition
from ..layers.attention_projection import AttentionProjection
from ..layers.generation import TokenSampler, Window, twice
from ..layers.llama import llama_layers
from ..layers.norm import RMSNorm
from ..llamagen.modeling_llamagen_prior import LlamaGenPrior
from ..outputs import ImagePriorOutput
from .configuration_unitok_prior import UniTokPriorConfig


class SummedEmbedding(nn.Module):
    """The sum of one vector for each id of a position."""

    def __init__(self, config: UniTokPriorConfig) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding(config.codebook_size, config.hidden_size) for _ in range(config.num_codebooks)
        )

    def forward(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """`(B, n, C)` to `(B, n, D)`."""
        return sum(table(token_ids[..., i]) for i, table in enumerate(self.tables))


class CodeEmbedding(nn.Module):
    """The tokenizer's own codes of unit length, a causal projection over all positions so far, and an MLP."""

    def __init__(self, config: UniTokPriorConfig) -> None:
        super().__init__()
        wide, width, books = config.code_hidden_size, config.code_width, config.num_codebooks
        self.layer_idx = config.num_hidden_layers  # behind the trunk's layers in the cache
        self.tables = nn.ModuleList(nn.Embedding(config.codebook_size, width // books) for _ in range(books))
        self.post_quant_proj = AttentionProjection(
            width, wide, wide // width, is_causal=True, layer_idx=self.layer_idx, config=config
        )
        self.norm = nn.LayerNorm(wide, eps=1e-6)
        self.fc1 = nn.Linear(wide, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """`(B, n, C)` to `(B, n, D)`; the cache holds the keys of earlier positions."""
        codes = [F.normalize(table(token_ids[..., i]), dim=-1) for i, table in enumerate(self.tables)]
        window = Window.causal(token_ids.shape[1], cache, token_ids.device, layer_idx=self.layer_idx)
        x = self.post_quant_proj(torch.cat(codes, -1), window.mask, cache)
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class SubCodeHead(nn.Module):
    """Reads [trunk state, id 1, ..., id C - 1] of one position, and predicts at each place the id that comes next."""

    def __init__(self, config: UniTokPriorConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.tables = nn.ModuleList(nn.Embedding(config.codebook_size, width) for _ in range(config.num_codebooks - 1))
        self.layers = llama_layers(config, config.num_head_layers)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.linear_head = nn.Linear(width, config.codebook_size)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The first ids of a position, `(R, c)` with c < C, to `(R, c, D)`."""
        return torch.stack([self.tables[i](token_ids[:, i]) for i in range(token_ids.shape[1])], 1)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits `(R, n, V)` of the next n places `(R, n, D)`, behind those in the cache."""
        mask = Window.causal(x.shape[1], cache, x.device).mask
        for layer in self.layers:
            x = layer(x, mask, None, cache)
        return self.linear_head(self.norm(x))


class UniTokPrior(LlamaGenPrior):
    """
    Writes ids `(B, N, C)` of UniTok or MedITok from a class.

    At each position the head writes the C ids one after the other, on a cache of its own, each with guidance and
    filters.
    """

    config: UniTokPriorConfig
    default_settings = {**LlamaGenPrior.default_settings, "cfg_scale": 2.0}

    def make_token_embedding(self) -> nn.Module:
        """See the base class."""
        return (SummedEmbedding if self.config.id_embedding == "sum" else CodeEmbedding)(self.config)

    def make_lm_head(self) -> nn.Module:
        """See the base class."""
        return SubCodeHead(self.config)

    @property
    def num_cache_layers(self) -> int:
        """One more where the embedding looks back."""
        return super().num_cache_layers + (self.config.id_embedding == "codes")

    def prefill(self, condition: Condition, token_ids: Tensor | None, cache: Cache | None) -> Tensor:
        """Trunk states `(B, 1, D)` in place of logits; `draw` runs the head."""
        x = self._embed_condition(condition)
        if token_ids is not None:
            x = torch.cat([x, self.token_embedding(token_ids, cache)], 1)
        return self.trunk(x, condition, cache)[:, -1:]

    def decode_step(self, token_ids: Tensor, condition: Condition, cache: Cache) -> Tensor:
        """As [`prefill`], behind the ids `(B, 1, C)` of the last step."""
        return self.trunk(self.token_embedding(token_ids, cache), condition, cache)

    def draw(self, prediction: Tensor, step: int, sampler: TokenSampler) -> tuple[Tensor, Tensor]:
        """The ids of a position, `(B, 1, C)`, one after the other; log-probabilities add up."""
        head, cache, written, logs = self.lm_head, DynamicCache(), [], []
        x = prediction[:, -1:]  # (R, 1, D); R is 2B with guidance
        for i in range(self.config.num_codebooks):
            if i:
                x = head.tables[i - 1](twice(written[-1], sampler.guided))
            ids, log_probs = sampler(head(x, cache), step)
            written.append(ids)
            logs.append(log_probs)
        return torch.stack(written, 2), torch.stack(logs).sum(0)

    def forward(
        self, token_ids: Tensor, class_labels: Tensor | None = None, null: bool = False, **kwargs: Any
    ) -> ImagePriorOutput:
        """
        Logits of every id given all before it, and the cross-entropy.

        Args:
            token_ids: int64 `(B, N, C)`.
            class_labels: int64 `(B,)`.
            null: put the null class in place of the labels. In training mode a share of `config.condition_dropout`
                rows gets it anyway.

        Returns:
            [`ImagePriorOutput`] with `logits` `(B, N, C, V)` and the loss `cross_entropy`.
        """
        condition = self.condition(class_labels)
        if null:
            condition = self.null_condition(condition)
        elif self.training and self.config.condition_dropout:
            condition = self.drop_conditions(condition, self.config.condition_dropout)
        x = torch.cat([self._embed_condition(condition), self.token_embedding(token_ids[:, :-1])], 1)
        states = self.trunk(x, condition).flatten(0, 1)[:, None]  # (B * N, 1, D)
        places = torch.cat([states, self.lm_head.embed(token_ids.flatten(0, 1)[:, :-1])], 1)  # (B * N, C, D)
        logits = self.lm_head(places).unflatten(0, token_ids.shape[:2])
        loss = F.cross_entropy(logits.flatten(0, 2), token_ids.flatten())
        return ImagePriorOutput(logits=logits, loss=loss, losses={"cross_entropy": loss})

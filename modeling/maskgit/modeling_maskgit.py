"""Masked priors (MaskGIT, arXiv 2202.04200) of TiTok and One-D-Piece: a class and N ids in, N rows of logits out."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.losses import masked_token_loss
from ..layers.masked_generation import MaskGitSampler, cosine_masking_ratio, open_ids
from ..layers.sampling import Generators
from ..outputs import ImagePriorOutput
from ..prior_utils import PreTrainedImagePrior
from .configuration_maskgit import MaskGitPriorConfig

SETTINGS = ("num_inference_steps", "cfg_scale", "cfg_schedule", "cfg_power", "choice_temperature", "anneal_logits")


class BertTrunk(nn.Module):
    """BERT without pooler: post-norm blocks over learned positions (TiTok's `ImageBert`)."""

    def __init__(self, config: MaskGitPriorConfig) -> None:
        super().__init__()
        bert = BertConfig(
            vocab_size=config.input_vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            max_position_embeddings=config.num_image_tokens + 1,
            attn_implementation=config._attn_implementation,
        )
        self.bert = BertModel(bert, add_pooling_layer=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`(B, 1 + N)` to `(B, 1 + N, D)`."""
        return self.bert(input_ids=input_ids).last_hidden_state


class UViTTrunk(nn.Module):
    """U-ViT (arXiv 2209.12152): the second half of the blocks also sees the outputs of the first, in reverse order."""

    def __init__(self, config: MaskGitPriorConfig) -> None:
        super().__init__()
        width, half = config.hidden_size, config.num_hidden_layers // 2
        self.initializer_range = config.initializer_range

        def block() -> TransformerBlock:
            return TransformerBlock(
                width, config.num_attention_heads, config.intermediate_size, qkv_bias=False, config=config
            )

        self.embeddings = nn.Embedding(config.input_vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.num_image_tokens + 1, width))
        self.in_blocks = nn.ModuleList(block() for _ in range(half))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block() for _ in range(half))
        self.skip_linears = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(half))
        self.norm = nn.LayerNorm(width)

    def init_own_weights(self) -> None:
        """Fresh values of the bare parameters."""
        init.normal_(self.position_embedding, std=self.initializer_range)

    def forward(self, input_ids: Tensor) -> Tensor:
        """`(B, 1 + N)` to `(B, 1 + N, D)`."""
        x, skips = self.embeddings(input_ids) + self.position_embedding[: input_ids.shape[1]], []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block, skip_linear in zip(self.out_blocks, self.skip_linears, strict=True):
            x = block(skip_linear(torch.cat([x, skips.pop()], -1)))
        return self.norm(x)


class MaskGitPrior(PreTrainedImagePrior):
    """
    Writes the ids of a discrete tokenizer from a class, a few positions at each step.

    Ids below `codebook_size` are codes, `codebook_size` stands for an open position. The null class (for guidance) is
    the label `num_classes`.
    """

    config: MaskGitPriorConfig
    main_input_name = "token_ids"
    _no_split_modules = ["TransformerBlock", "BertLayer"]
    default_settings = {
        "num_inference_steps": 8,
        "cfg_scale": 4.5,
        "cfg_schedule": "constant",
        "cfg_power": 3.0,
        "choice_temperature": 1.0,
        "anneal_logits": False,
    }

    def __init__(self, config: MaskGitPriorConfig) -> None:
        super().__init__(config)
        self.model = BertTrunk(config) if config.architecture == "bert" else UViTTrunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.codebook_size)
        self.post_init()

    @property
    def mask_token_id(self) -> int:
        """The id of an open position."""
        return self.config.mask_id

    def predict(self, token_ids: Tensor, class_labels: Tensor) -> Tensor:
        """
        Logits of all positions.

        Args:
            token_ids: int64 `(B, N)`, `mask_token_id` where open.
            class_labels: int64 `(B,)`; `num_classes` is the null class.

        Returns:
            `(B, N, codebook_size)`.
        """
        prefix = class_labels[:, None] + self.config.mask_id + 1
        hidden = self.model(torch.cat([prefix, token_ids], 1))
        return self.lm_head(hidden[:, 1:])

    def forward(
        self, token_ids: Tensor, class_labels: Tensor, mask: Tensor | None = None, **kwargs: Any
    ) -> ImagePriorOutput:
        """
        Logits in eval mode; in training mode also the masked-token loss on randomly masked ids.

        Args:
            token_ids: int64 `(B, N)`. In training mode: complete ids.
            class_labels: int64 `(B,)`.
            mask: bool `(B, N)`, what training hides; drawn where `None`.
        """
        if not self.training:
            return ImagePriorOutput(logits=self.predict(token_ids, class_labels))
        if mask is None:
            uniform = torch.rand(token_ids.shape[0], 1, device=token_ids.device)
            count = (cosine_masking_ratio(uniform) * token_ids.shape[1]).round().clamp_min(1)
            mask = torch.rand(token_ids.shape, device=token_ids.device).argsort(-1) < count
        dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout
        class_labels = class_labels.masked_fill(dropped, self.config.num_classes)
        logits = self.predict(token_ids.masked_fill(mask, self.mask_token_id), class_labels)
        loss, accuracy = masked_token_loss(
            logits,
            token_ids,
            mask,
            label_smoothing=self.config.label_smoothing,
            unmasked_weight=self.config.unmasked_loss_weight,
        )
        losses = {"masked_token_loss": loss, "accuracy": accuracy.detach()}
        return ImagePriorOutput(loss=loss, losses=losses, logits=logits)

    def sampler(self, **settings: Any) -> MaskGitSampler:
        """The sampler of this checkpoint: published settings, replaced by those of `settings` that are not None."""
        unknown = set(settings) - set(SETTINGS)
        if unknown:
            raise ValueError(f"Unknown settings {sorted(unknown)}; known: {', '.join(SETTINGS)}.")
        return MaskGitSampler(**{name: self.setting(name, settings.get(name)) for name in SETTINGS})

    @apply_forward_hook
    @torch.no_grad()
    def generate(
        self,
        class_labels: int | list[int] | Tensor,
        *,
        num_inference_steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_schedule: str | None = None,
        cfg_power: float | None = None,
        choice_temperature: float | None = None,
        anneal_logits: bool | None = None,
        prior_token_ids: Tensor | None = None,
        generator: Generators = None,
        draws: tuple[Tensor, Tensor] | None = None,
        sampler: Any = None,
        callback: Callable[[int, Tensor], Tensor | None] | None = None,
    ) -> ImagePriorOutput:
        """
        Writes ids for each class label.

        Args:
            class_labels: one label or several, in [0, num_classes).
            num_inference_steps, cfg_scale, cfg_schedule, cfg_power, choice_temperature, anneal_logits: see
                [`MaskGitSampler`]; `None` means as published.
            prior_token_ids: ids `(B, N)` to complete; open positions hold `mask_token_id`.
            generator: random generator, or one per image.
            draws: uniform draws to use instead: `(S, B, N, V)` for candidates and `(S, B, N)` for confidences.
            sampler: an object with `num_inference_steps`, `guided_logits` and `step` in place of the settings.
            callback: called with (step, ids) after each step; may return other ids.

        Returns:
            [`ImagePriorOutput`] with `token_ids` `(B, N)`.
        """
        labels = self.check_class_labels(class_labels)
        if sampler is None:
            sampler = self.sampler(
                num_inference_steps=num_inference_steps,
                cfg_scale=cfg_scale,
                cfg_schedule=cfg_schedule,
                cfg_power=cfg_power,
                choice_temperature=choice_temperature,
                anneal_logits=anneal_logits,
            )
        mask_id = self.mask_token_id
        ids = open_ids((len(labels), self.num_tokens), mask_id, prior_token_ids, labels.device)
        both = torch.cat([labels, torch.full_like(labels, self.config.num_classes)])
        for step in range(sampler.num_inference_steps):

            def predict(guided: bool, ids: Tensor = ids) -> Tensor:
                return self.predict(torch.cat([ids, ids]), both) if guided else self.predict(ids, labels)

            logits = sampler.guided_logits(predict, step)
            given = None if draws is None else (draws[0][step], draws[1][step])
            ids = sampler.step(logits, step, ids, mask_id, generator, given)
            if callback is not None:
                changed = callback(step, ids)
                ids = ids if changed is None else changed
        return ImagePriorOutput(token_ids=ids)

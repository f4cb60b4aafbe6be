"""
UniTok (arXiv 2502.20321): one tokenizer for drawing and for understanding.

A hybrid encoder (convolutions, then a ViT), a projection by attention, eight codebooks that quantize chunks of the
vector, and from the codes on a decoder of pixels and an embedding that is compared with texts.
"""

import math
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from transformers import initialization as init

from ..layers.attention_projection import AttentionProjection
from ..layers.quantizers import QuantizerOutput, VectorQuantizer
from ..layers.vitamin import ViTaminDecoder, ViTaminEncoder
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_unitok import UniTokConfig

MAX_LOGIT_SCALE = 100.0  # CLIP's bound of the inverse temperature


def text_tower(config: UniTokConfig) -> CLIPTextModelWithProjection:
    """open_clip's text tower; it reads its state at the largest id, which is the end token's."""
    tower = CLIPTextConfig(
        vocab_size=config.text_vocab_size,
        hidden_size=config.text_hidden_size,
        intermediate_size=4 * config.text_hidden_size,
        projection_dim=config.embed_dim,
        num_hidden_layers=config.text_num_layers,
        num_attention_heads=config.text_num_heads,
        max_position_embeddings=config.text_context_length,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        eos_token_id=2,  # transformers' sign for "the largest id"
        bos_token_id=0,
        pad_token_id=0,
    )
    return CLIPTextModelWithProjection(tower)


class UniTokModel(PreTrainedImageTokenizer):
    """
    Images `(B, 3, H, W)` in [-1, 1] to ids `(B, N, C)` in raster order, and back; pictures and texts in one space.

    `latents` are the C codes of a position side by side, each of unit length. `encode` gives the ViT's tokens as
    `features` and their mean as `pooled_features`; `decode` gives the tokens behind the codes as `features` and the
    picture's embedding as `pooled`. `similarity` compares pictures and texts.
    """

    config: UniTokConfig
    latent_layout = "sequence"
    _no_split_modules = ["TransformerBlock", "MbConvLN", "CLIPEncoderLayer"]

    def __init__(self, config: UniTokConfig) -> None:
        super().__init__(config)
        widths, layers = (*config.conv_widths, config.hidden_size), config.num_hidden_layers
        shape = (config.num_channels, config.stem_width, widths)
        vit = (layers, config.num_attention_heads, config)
        self.encoder = ViTaminEncoder(*shape, config.encoder_stage_depths, *vit)
        self.quant_proj = self._projection(config.hidden_size, config.latent_width)
        self.quantizers = nn.ModuleList(
            VectorQuantizer(
                config.codebook_size,
                config.latent_width // config.num_codebooks,
                l2_norm=True,
                commitment_cost=config.commitment_cost,
            )
            for _ in range(config.num_codebooks)
        )
        self.post_quant_proj = self._projection(config.latent_width, config.hidden_size)
        self.decoder = ViTaminDecoder(*shape, config.decoder_stage_depths, *vit)
        if config.embed_dim:
            self.fc_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
            self.projection = nn.Linear(config.hidden_size, config.embed_dim)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.text_encoder = text_tower(config) if config.text_num_layers else None
        self.post_init()

    def _projection(self, in_dim: int, out_dim: int) -> nn.Module:
        config = self.config
        if config.projection == "linear":
            return nn.Linear(in_dim, out_dim)
        heads, causal = config.projection_heads, config.causal_projection
        return AttentionProjection(in_dim, out_dim, heads, is_causal=causal, config=config)

    def init_own_weights(self) -> None:
        """CLIP's first temperature."""
        if self.config.embed_dim:
            init.constant_(self.logit_scale, math.log(1 / 0.07))

    @property
    def num_tokens(self) -> int:
        """Positions of a picture."""
        return self.config.grid_size**2

    @property
    def latent_dim(self) -> int:
        """Width of all codes of a position together."""
        return self.config.latent_width

    # ------------------------------------------------------------------ tokens

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        features = self.encoder(pixel_values)
        pre_quant = self.quant_proj(features)
        outputs = self.quantize_all(pre_quant)
        losses = {name: torch.stack([output.losses[name] for output in outputs]).mean() for name in outputs[0].losses}
        return ImageTokenizerEncoderOutput(
            latents=torch.cat([output.quantized for output in outputs], -1),
            token_ids=torch.stack([output.indices for output in outputs], -1),
            pre_quant=pre_quant,
            features=features,
            pooled_features=features.mean(1),
            loss=sum(losses.values()),
            losses=losses,
        )

    def quantize_all(self, pre_quant: Tensor) -> list[QuantizerOutput]:
        """
        Each codebook's quantizer on its chunk of the vector.

        Args:
            pre_quant: `(B, N, D)`.

        Returns:
            sequences `(B, N, D / C)`; losses `commitment_loss` and `codebook_loss`, weighted.
        """
        chunks = pre_quant.chunk(self.num_codebooks, -1)
        return [quantizer(chunk) for quantizer, chunk in zip(self.quantizers, chunks, strict=True)]

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebooks, `(B, N, C, D / C)`, of unit length."""
        rows = [quantizer.indices_to_latents(token_ids[..., i]) for i, quantizer in enumerate(self.quantizers)]
        return torch.stack(rows, 2)

    def _ids_to_latents(self, token_ids: Tensor) -> Tensor:
        return self.get_codebook_entry(token_ids).flatten(2)

    def _decode(self, latents: Tensor, token_mask: Tensor | None = None) -> ImageTokenizerDecoderOutput:
        features = self.post_quant_proj(latents.to(self.dtype))
        sample = self.decoder(features, self.config.grid_size, self.config.grid_size)
        pooled = self.embed_tokens(features) if self.config.embed_dim else None
        return ImageTokenizerDecoderOutput(sample=sample, features=features, pooled=pooled)

    # ------------------------------------------------------------------ pictures and texts

    def embed_tokens(self, features: Tensor) -> Tensor:
        """
        A picture's embedding.

        Args:
            features: tokens behind the codes, `(B, N, D)`, as `decode(...).features`.

        Returns:
            `(B, embed_dim)`, of unit length.

        Raises:
            ValueError: of a checkpoint without embeddings.
        """
        if not self.config.embed_dim:
            raise ValueError(f"This {type(self).__name__} has no embeddings of pictures (config.embed_dim is 0).")
        return F.normalize(self.projection(self.fc_norm(features.mean(1))), dim=-1)

    @apply_forward_hook
    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Embeddings `(B, embed_dim)` of pictures, of unit length, read from their tokens and not from pixels."""
        return self.embed_tokens(self.post_quant_proj(self.encode(pixel_values).latents.to(self.dtype)))

    @apply_forward_hook
    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """
        Embeddings of texts.

        Args:
            input_ids: int64 `(T, n)`, n up to `text_context_length`, from CLIP's tokenizer, padded with 0 behind the
                end token (which has the largest id).

        Returns:
            `(T, embed_dim)`, of unit length.

        Raises:
            ValueError: of a checkpoint without text tower, and for ids of a wrong shape.
        """
        if self.text_encoder is None:
            raise ValueError(f"This {type(self).__name__} has no text tower (config.text_num_layers is 0).")
        longest = self.config.text_context_length
        if input_ids.ndim != 2 or not 0 < input_ids.shape[1] <= longest or input_ids.is_floating_point():
            raise ValueError(f"input_ids must be int64 (T, up to {longest}), got {tuple(input_ids.shape)}.")
        return F.normalize(self.text_encoder(input_ids=input_ids).text_embeds, dim=-1)

    @apply_forward_hook
    def similarity(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """
        How well texts fit pictures: a softmax over T gives the probabilities of a zero-shot classification.

        Args:
            pixel_values: `(B, 3, H, W)`.
            input_ids: `(T, n)`, see [`get_text_features`].

        Returns:
            `(B, T)`: cosines times the learned inverse temperature.
        """
        return self._scores(self.get_image_features(pixel_values), self.get_text_features(input_ids))

    def _scores(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * images @ texts.t()

    # ------------------------------------------------------------------ training

    def contrastive_loss(self, images: Tensor, others: Tensor) -> Tensor:
        """CLIP's symmetric loss over the batch, weighted: `(B, embed_dim)` twice, both of unit length."""
        scores, target = self._scores(images, others), torch.arange(len(images), device=images.device)
        both = F.cross_entropy(scores, target) + F.cross_entropy(scores.t(), target)
        return self.config.contrastive_weight * both / 2

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs: Any,
    ) -> ImageTokenizerOutput:
        """
        One training pass.

        Args:
            pixel_values: `(B, 3, H, W)` in [-1, 1].
            input_ids: a caption for each, `(B, n)`; see [`get_text_features`].
            teacher_features: embeddings `(B, embed_dim)` of a frozen model in place of captions: of the same pictures,
                or of their texts.

        Returns:
            weighted losses `l1_loss`, `l2_loss`, `commitment_loss`, `codebook_loss`, and `contrastive_loss` where
            there is something to compare with. The perceptual and adversarial terms are the trainer's.
        """
        encoded = self.encode(pixel_values)
        decoded = self.decode(encoded.latents)
        losses = {
            "l1_loss": self.config.l1_weight * F.l1_loss(decoded.sample, pixel_values),
            "l2_loss": self.config.l2_weight * F.mse_loss(decoded.sample, pixel_values),
            **encoded.losses,
        }
        if input_ids is not None and teacher_features is not None:
            raise ValueError("Give input_ids or teacher_features, not both.")
        if input_ids is not None or teacher_features is not None:
            texts = teacher_features if input_ids is None else self.get_text_features(input_ids)
            losses["contrastive_loss"] = self.contrastive_loss(
                self.embed_tokens(decoded.features), F.normalize(texts, dim=-1)
            )
        return ImageTokenizerOutput(
            sum(losses.values()), losses, decoded.sample, encoded.token_ids, features=encoded.features
        )

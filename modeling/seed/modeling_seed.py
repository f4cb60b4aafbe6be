"""SEED-2 (arXiv 2310.01218, section 3.1): ViT, causal Q-Former, codebook; and back to an embedding of the picture.

Shape suffixes in comments: B images, N queries, M features of the ViT, D the Q-Former's width, C a code's width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from ..layers.attention import TransformerBlock
from ..layers.eva import EvaViT
from ..layers.qformer import QFormer
from ..layers.quantizers import VectorQuantizer
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_seed import SeedConfig

LOSS_WEIGHTS = {"vq_loss": 5.0, "image_loss": 0.5, "feature_loss": 2.0}


def two_layers(in_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, Tanh, Linear."""
    return nn.Sequential(nn.Linear(in_dim, in_dim), nn.Tanh(), nn.Linear(in_dim, out_dim))


class Branch(nn.Module):
    """Positions and pre-norm blocks behind the codebook, without a last norm."""

    def __init__(self, config: SeedConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.initializer_range = config.initializer_range
        self.position_embedding = nn.Parameter(torch.empty(config.num_query_tokens, width))
        self.layers = nn.ModuleList(
            TransformerBlock(width, config.decode_num_heads, 4 * width, eps=1e-6, config=config)
            for _ in range(config.decode_num_layers)
        )

    def init_own_weights(self) -> None:
        """Fresh positions."""
        init.normal_(self.position_embedding, std=self.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`."""
        x = x + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return x


class SeedModel(PreTrainedImageTokenizer):
    """
    Images (normalised with CLIP's mean and std) to 32 ids; ids to an image embedding that unCLIP draws.

    `decode(...).sample` is the embedding, `(B, image_embed_dim)`, in the space of OpenCLIP ViT-H/14; `features` are the
    tokens `(B, N, D)` behind the codebook. Pixels: `SeedPipeline`.
    """

    config: SeedConfig
    decodes_to = "features"
    _no_split_modules = ["TransformerBlock", "QFormerLayer"]

    def __init__(self, config: SeedConfig) -> None:
        super().__init__(config)
        width, bert = config.hidden_size, (config.num_hidden_layers, config.num_attention_heads)
        shape = {"eps": config.layer_norm_eps, "cross_attention_every": config.cross_attention_every, "config": config}
        self.vision_encoder = None
        if config.has_vision_encoder:
            self.vision_encoder = EvaViT(
                config.image_size,
                config.vision_patch_size,
                config.vision_hidden_size,
                config.vision_num_layers,
                config.vision_num_heads,
                config.vision_mlp_ratio,
                eps=config.vision_layer_norm_eps,
                initializer_range=config.initializer_range,
                config=config,
            )
        self.vision_norm = nn.LayerNorm(config.vision_hidden_size)
        self.query_tokens = nn.Parameter(torch.empty(config.num_query_tokens, width))
        self.qformer = QFormer(
            width,
            *bert,
            config.intermediate_size,
            config.vision_hidden_size,
            is_causal=config.causal_queries,
            **shape,
        )
        self.proj_in = two_layers(width, config.token_size)
        self.quantize = VectorQuantizer(config.codebook_size, config.token_size, commitment_cost=1.0)
        self.proj_out = two_layers(config.token_size, width)
        self.features = Branch(config) if config.feature_branch else None
        self.image = Branch(config) if config.image_branch else None
        if config.head == "qformer":
            self.reverse_token = nn.Parameter(torch.empty(1, width))
            self.reverse_qformer = QFormer(width, *bert, config.intermediate_size, width, **shape)
            self.head = nn.Linear(width, config.image_embed_dim)
        else:
            sizes = (width, 256, 128, 32)
            down = [nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)]
            self.image_down = nn.Sequential(down[0], nn.ReLU(), down[1], nn.ReLU(), down[2])
            self.head = nn.Linear(sizes[-1] * config.num_query_tokens, config.image_embed_dim)
        self.post_init()
        self._freeze()

    def init_own_weights(self) -> None:
        """Fresh queries, and the authors' range of the codebook."""
        for parameter in self.parameters(recurse=False):
            init.normal_(parameter, std=self.config.initializer_range)
        bound = 1.0 / self.config.codebook_size
        init.uniform_(self.quantize.embedding.weight, -bound, bound)

    def _freeze(self) -> None:
        for part in (self.vision_encoder, self.vision_norm, self.qformer):
            if part is not None and self.config.freeze_encoder:
                part.requires_grad_(False)
        self.query_tokens.requires_grad_(not self.config.freeze_encoder)

    def train(self, mode: bool = True) -> "SeedModel":
        """As usual; what is frozen stays frozen (loading forgets that)."""
        super().train(mode)
        self._freeze()
        return self

    @property
    def num_tokens(self) -> int:
        """Ids of one picture."""
        return self.config.num_query_tokens

    @property
    def latent_dim(self) -> int:
        """Width of a code."""
        return self.config.token_size

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, C)`."""
        return self.quantize.indices_to_latents(token_ids)

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """What the Q-Former reads: all tokens of the ViT behind a norm, `(B, M, vision_hidden_size)`."""
        if self.vision_encoder is None:
            raise ValueError("This checkpoint has no vision encoder: give features to encode_features.")
        return self.vision_norm(self.vision_encoder(pixel_values))

    def encode_features(self, vision_features: Tensor) -> ImageTokenizerEncoderOutput:
        """As `encode`, from `vision_features` `(B, M, vision_hidden_size)`; `features` are the Q-Former's output."""
        queries = self.qformer(self.query_tokens, vision_features)
        pre_quant = self.proj_in(queries)
        output = self.quantize(pre_quant)
        # the authors weight the codebook's term, not the commitment
        losses = {name: value * (0.25 if name == "codebook_loss" else 1.0) for name, value in output.losses.items()}
        return ImageTokenizerEncoderOutput(
            latents=output.quantized,
            token_ids=output.indices,
            pre_quant=pre_quant,
            features=queries,
            loss=sum(losses.values()),
            losses=losses,
        )

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        return self.encode_features(self.vision_features(pixel_values))

    def rebuild_features(self, latents: Tensor) -> Tensor:
        """The feature branch: the Q-Former's output from the codes, `(B, N, D)`."""
        if self.features is None:
            raise ValueError("This checkpoint has no feature branch.")
        return self.features(self.proj_out(latents.to(self.dtype)))

    def _decode(self, latents: Tensor, token_mask: Tensor | None) -> ImageTokenizerDecoderOutput:
        decoded = self.proj_out(latents)
        x = self.features(decoded) if self.config.embeds_from_features else decoded
        x = x if self.image is None else self.image(x)
        if self.config.head == "qformer":
            embeds = self.head(self.reverse_qformer(self.reverse_token, x)[:, 0])
        else:
            embeds = self.head(self.image_down(x).flatten(1))
        return ImageTokenizerDecoderOutput(sample=embeds, features=decoded, pooled=embeds)

    def detokenize(self, tokens: Tensor, **decode_kwargs: Any) -> Tensor:
        """Image embeddings `(B, image_embed_dim)` of ids; pixels are the pipeline's."""
        return self.decode_tokens(tokens, **decode_kwargs).sample

    def forward(self, pixel_values: Tensor, image_embeds: Tensor | None = None, **kwargs: Any) -> ImageTokenizerOutput:
        """
        One pass of the second training stage.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised.
            image_embeds: OpenCLIP ViT-H/14's embeddings of the same pictures, `(B, image_embed_dim)`.
            kwargs: of `encode`.

        Returns:
            losses `vq_loss`, `feature_loss` (1 - cosine to the Q-Former's output; where there is a feature branch) and
            `image_loss` (L2; where `image_embeds` are given), by default weighted 5, 2 and 0.5.
        """
        encoded = self.encode(pixel_values, **kwargs)
        decoded = self.decode(encoded.latents)
        losses = {"vq_loss": encoded.loss}
        if self.features is not None:
            rebuilt = self.rebuild_features(encoded.latents)
            losses["feature_loss"] = 1 - F.cosine_similarity(rebuilt, encoded.features, dim=-1).mean()
        if image_embeds is not None:
            losses["image_loss"] = F.mse_loss(decoded.sample, image_embeds.to(decoded.sample))
        weights = {**LOSS_WEIGHTS, **(self.config.loss_weights or {})}
        total = sum(weights.get(name, 1.0) * value for name, value in losses.items())
        return ImageTokenizerOutput(total, losses, decoded.sample, encoded.token_ids, encoded.features)

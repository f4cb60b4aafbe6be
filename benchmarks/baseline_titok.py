"""
The baseline of the speed figures: TiTok and its BERT prior with the same blocks on `nn.MultiheadAttention`.

It computes what our models compute (`take_weights` copies theirs, and the benchmarks compare outputs first), written as
one would write it with torch alone: whole sequences through every layer, `need_weights=False`, eval mode.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm or post-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, *, post_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, N, D)` to the same."""
        if self.post_norm:
            x = self.norm1(x + self.attn(x, x, x, need_weights=False)[0])
            return self.norm2(x + self.mlp(x))
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def take_block(block: Block, state: dict[str, Tensor], prefix: str) -> None:
    """Copies a `TransformerBlock`'s weights."""
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
    }
    own = {f"{new}.{kind}": state[f"{prefix}{old}.{kind}"] for new, old in names.items() for kind in ("weight", "bias")}
    own["attn.in_proj_weight"] = state[f"{prefix}attn.qkv.weight"]
    own["attn.in_proj_bias"] = state[f"{prefix}attn.qkv.bias"]
    block.load_state_dict(own, assign=True)


class BaselineTiTok:
    """`encode` and `decode` of a [`TiTokModel`], sharing its weights; convolution blocks are the same code."""

    def __init__(self, model: Any) -> None:
        config, state = model.config, model.state_dict()
        self.model = model
        self.layers: dict[str, list[Block]] = {}
        for half in ("encoder", "decoder"):
            width, heads = getattr(config, f"{half}_hidden_size"), getattr(config, f"{half}_num_heads")
            with torch.device("meta"):
                blocks = [Block(width, heads, 4 * width) for _ in range(getattr(config, f"{half}_num_layers"))]
            for index, block in enumerate(blocks):
                take_block(block, state, f"{half}.layers.{index}.")
            self.layers[half] = [block.eval() for block in blocks]

    def encode(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to ids `(B, N)`."""
        part = self.model.encoder
        patches = part.patch_embed(pixels).flatten(2).transpose(1, 2)
        batch = len(patches)
        image = torch.cat([part.class_embedding.expand(batch, 1, -1), patches], 1) + part.position_embedding
        latents = (part.latent_tokens + part.latent_position_embedding).expand(batch, -1, -1)
        x = part.norm_pre(torch.cat([image, latents], 1))
        for block in self.layers["encoder"]:
            x = block(x)
        x = part.norm_post(x[:, image.shape[1] :])
        if part.scrambled:
            x = x.reshape(batch, x.shape[2], x.shape[1]).transpose(1, 2)
        latents = F.normalize(part.proj(x), dim=-1)
        return torch.cdist(latents.flatten(0, 1), F.normalize(self.model.quantize.embedding.weight, dim=-1)).argmin(1)

    def decode(self, latents: Tensor) -> Tensor:
        """`(B, N, D)` to pixels; a shorter sequence is padded by masked tokens, as full-length code does."""
        part = self.model.decoder
        batch, grid = len(latents), part.grid
        masks = part.mask_token.expand(batch, grid**2, -1)
        image = torch.cat([part.class_embedding.expand(batch, 1, -1), masks], 1) + part.position_embedding
        tokens = part.embed(latents) + part.latent_position_embedding[: latents.shape[1]]
        x = part.norm_pre(torch.cat([image, tokens], 1))
        for block in self.layers["decoder"]:
            x = block(x)
        logits = part.head(part.norm_post(x[:, 1 : 1 + grid**2])).transpose(1, 2).unflatten(2, (grid, grid))
        codes = torch.einsum("bkhw,kc->bchw", logits.softmax(1), self.model.pixel_codebook.weight)
        return decode_pixels(self.model.pixel_decoder, codes)


def decode_pixels(part: Any, codes: Tensor) -> Tensor:
    """The pixel decoder with its pictures doubled before they are convolved."""
    x = part.conv_in(codes)
    for block in part.mid:
        x = block(x)
    for index, level in enumerate(part.up):
        for block in level:
            x = block(x)
        if index < len(part.upsample):
            x = part.upsample[index](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return part.conv_out(F.silu(part.norm_out(x)))


class BaselinePrior(nn.Module):
    """The BERT prior's logits, one forward pass for the conditional and one for the unconditional half."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        config, bert = prior.config, prior.model.bert
        self.prior, self.embeddings = prior, bert.embeddings
        with torch.device("meta"):
            self.layers = nn.ModuleList(
                Block(
                    config.hidden_size,
                    config.num_attention_heads,
                    config.intermediate_size,
                    post_norm=True,
                    eps=bert.config.layer_norm_eps,
                )
                for _ in range(config.num_hidden_layers)
            )
        for block, source in zip(self.layers, bert.encoder.layer, strict=True):
            take_bert_block(block, source)

    def predict(self, token_ids: Tensor, class_labels: Tensor) -> Tensor:
        """Logits `(B, N, V)`."""
        prefix = class_labels[:, None] + self.prior.config.mask_id + 1
        x = self.embeddings(input_ids=torch.cat([prefix, token_ids], 1))
        for layer in self.layers:
            x = layer(x)
        return self.prior.lm_head(x)[:, 1:]


def take_bert_block(block: Block, source: nn.Module) -> None:
    """Copies a `BertLayer`'s weights."""
    attention = source.attention
    query, key, value = (getattr(attention.self, name) for name in ("query", "key", "value"))
    pairs = {
        "norm1": attention.output.LayerNorm,
        "norm2": source.output.LayerNorm,
        "attn.out_proj": attention.output.dense,
        "mlp.0": source.intermediate.dense,
        "mlp.2": source.output.dense,
    }
    own = {
        f"{name}.{kind}": getattr(module, kind).data for name, module in pairs.items() for kind in ("weight", "bias")
    }
    own["attn.in_proj_weight"] = torch.cat([query.weight, key.weight, value.weight]).data
    own["attn.in_proj_bias"] = torch.cat([query.bias, key.bias, value.bias]).data
    block.load_state_dict(own, assign=True)

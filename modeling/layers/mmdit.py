"""diffusers' MM-DiT block (Stable Diffusion 3, arXiv 2403.03206) as a trunk over image tokens and text."""

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class JointBlock(GradientCheckpointingLayer, JointTransformerBlock):
    """A joint block that can be checkpointed; called as `block(hidden, text, temb)`, returns `(text, hidden)`."""


class NoQueries(nn.Module):
    """Zeros in place of the text's queries in a block whose text output nobody reads."""

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, D)` to zeros of the same shape."""
        return torch.zeros_like(x)


class JointTrunk(nn.Module):
    """
    Joint blocks, the last of which leaves the text alone, and a modulated norm.

    Args:
        dim, num_heads: width and heads.
        num_layers: number of blocks.
    """

    def __init__(self, dim: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"The width {dim} is no multiple of the number of heads {num_heads}.")
        self.blocks = nn.ModuleList(
            JointBlock(dim, num_heads, dim // num_heads, context_pre_only=index == num_layers - 1)
            for index in range(num_layers)
        )
        self.norm = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        for block in self.blocks:
            block.norm1.linear.zero_init = block.norm1_context.linear.zero_init = True
        self.blocks[-1].attn.add_q_proj = NoQueries()
        self.norm.linear.zero_init = True

    def forward(self, hidden: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """Image tokens `(B, N, D)`, text `(B, T, D)` and a pooled condition `(B, D)` to `(B, N, D)`."""
        for block in self.blocks:
            text, hidden = block(hidden, text, condition)
        return self.norm(hidden, condition)

"""FlexTok's encoder (arXiv 2502.13967, section 3.1): VAE latents and registers to the input of the quantizer."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import initialization as init

from ..layers.patches import patchify
from .modeling_flextok_layers import FlexTokBlock, PositionTable, plain_norm


class FlexTokEncoder(ModelMixin, ConfigMixin):
    """
    Reads VAE latents into registers; as the optional `image_encoder` of a pipeline, a model of its own.

    Args:
        in_channels: of the latents.
        sample_size: side of the latents that `image_size` pixels have; smaller ones use its top left positions.
        patch_size: side of a patch in latent positions.
        hidden_size, num_layers, head_dim: of the transformer.
        num_registers: length N of the result; 0 for the grid variant, which quantizes the patches themselves.
        causal_registers: register i sees the patches and registers up to i, patches see patches only ("causal_last"
            of the authors); otherwise everything sees everything.
        positions: "sincos" or "learned" positions of the patches.
        out_dim: number of FSQ channels.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["FlexTokBlock"]
    _repeated_blocks = ["FlexTokBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        sample_size: int = 32,
        patch_size: int = 2,
        hidden_size: int = 1152,
        num_layers: int = 18,
        head_dim: int = 64,
        num_registers: int = 256,
        causal_registers: bool = True,
        positions: str = "sincos",
        out_dim: int = 6,
    ) -> None:
        super().__init__()
        side = sample_size // patch_size
        self.patch_embed = nn.Linear(in_channels * patch_size**2, hidden_size)
        self.patch_position_table = PositionTable(hidden_size, (side, side), positions)
        self.registers = nn.Parameter(0.02 * torch.randn(num_registers, hidden_size)) if num_registers else None
        self.layers = nn.ModuleList(FlexTokBlock(hidden_size, head_dim) for _ in range(num_layers))
        self.norm_out = plain_norm(hidden_size)
        self.proj_out = nn.Linear(hidden_size, out_dim)

    def init_own_weights(self) -> None:
        """Fresh registers."""
        if self.registers is not None:
            init.normal_(self.registers, std=0.02)

    def _mask(self, patches: int, registers: int, device: torch.device) -> Tensor | None:
        if not registers or not self.config.causal_registers:
            return None
        position = torch.arange(patches + registers, device=device)
        # patches see the patches; a register sees them and the registers up to itself
        return position[None] <= position[:, None].clamp_min(patches - 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scaled VAE latents `(B, C, h, w)` to `(B, N, out_dim)`, N registers or the patches row by row."""
        patch = self.config.patch_size
        rows, columns = hidden_states.shape[2] // patch, hidden_states.shape[3] // patch
        x = self.patch_embed(patchify(hidden_states.to(self.dtype), patch)) + self.patch_position_table(rows, columns)
        patches, count = rows * columns, 0
        if self.registers is not None:
            count = len(self.registers)
            x = torch.cat([x, self.registers.expand(x.shape[0], -1, -1)], 1)
        mask = self._mask(patches, count, x.device)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return self.proj_out(self.norm_out(x[:, patches:] if count else x))

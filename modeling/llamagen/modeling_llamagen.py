"""LlamaGen's VQ tokenizer (arXiv 2406.06525, section 2.1): the convolutional VQGAN that many systems start from."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.conv_codec import check_multiple, flatten_grid, grid_of, unflatten_grid
from ..layers.conv_codec_taming import TamingDecoder, TamingEncoder
from ..layers.quantizers import VectorQuantizer
from ..modeling_utils import PreTrainedImageTokenizer
from ..outputs import ImageTokenizerDecoderOutput, ImageTokenizerEncoderOutput, ImageTokenizerOutput
from .configuration_llamagen import LlamaGenVQConfig


class LlamaGenVQModel(PreTrainedImageTokenizer):
    """
    Images `(B, 3, H, W)` in [-1, 1] to `H/f * W/f` ids in raster order, and back; f = `config.downsample_factor`.

    Any size whose sides are multiples of f is taken. Grids that are not square need `image_size` when ids are decoded.
    """

    config: LlamaGenVQConfig
    latent_layout = "grid"
    _no_split_modules = ["ResidualBlock", "GridAttention"]

    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__(config)
        options = {"groups": config.norm_num_groups, "dropout": config.dropout}
        sizes = (config.num_res_blocks, config.z_channels)
        channels, width = config.num_channels, config.hidden_channels
        self.encoder = TamingEncoder(channels, width, config.encoder_channel_mult, *sizes, **options)
        self.decoder = TamingDecoder(channels, width, config.decoder_channel_mult, *sizes, **options)
        self.quantize = VectorQuantizer(
            config.codebook_size,
            config.codebook_dim,
            l2_norm=config.codebook_l2_norm,
            commitment_cost=config.commitment_cost,
            entropy_cost=config.entropy_loss_ratio,
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.post_init()

    @property
    def num_tokens(self) -> int:
        """Positions of a picture of `config.image_size`."""
        return (self.config.image_size // self.config.downsample_factor) ** 2

    @property
    def latent_dim(self) -> int:
        """Width of codes."""
        return self.config.codebook_dim

    def _check_image_size(self, height: int, width: int) -> None:
        check_multiple(type(self).__name__, height, width, self.config.downsample_factor)

    def _check_token_count(self, token_ids: Tensor) -> None:
        """Any count is a grid of some picture; `_ids_to_latents` checks that it is one."""

    def _encode(self, pixel_values: Tensor) -> ImageTokenizerEncoderOutput:
        pre_quant = self.quant_conv(self.encoder(pixel_values))
        height, width = pre_quant.shape[2:]
        output = self.quantize(flatten_grid(pre_quant))
        return ImageTokenizerEncoderOutput(
            latents=unflatten_grid(output.quantized, height, width).to(pre_quant.dtype),
            token_ids=output.indices,
            pre_quant=pre_quant,
            loss=output.loss,
            losses=output.losses,
        )

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook, `(B, N, D)`, of unit length where `codebook_l2_norm`."""
        return self.quantize.indices_to_latents(token_ids)

    def _ids_to_latents(self, token_ids: Tensor, image_size: int | tuple[int, int] | None = None) -> Tensor:
        height, width = grid_of(token_ids.shape[1], image_size, self.config.downsample_factor)
        return unflatten_grid(self.get_codebook_entry(token_ids), height, width)

    def _decode(
        self, latents: Tensor, token_mask: Tensor | None = None, image_size: int | tuple[int, int] | None = None
    ) -> ImageTokenizerDecoderOutput:
        return ImageTokenizerDecoderOutput(sample=self.decoder(self.post_quant_conv(latents)))

    def forward(self, pixel_values: Tensor) -> ImageTokenizerOutput:
        """Reconstruction (mean squared error) and quantizer losses of `pixel_values`."""
        encoded = self.encode(pixel_values)
        sample = self.decode(encoded.latents).sample
        losses = {"reconstruction_loss": F.mse_loss(sample, pixel_values), **encoded.losses}
        return ImageTokenizerOutput(sum(losses.values()), losses, sample, encoded.token_ids)

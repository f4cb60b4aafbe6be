"""Base configurations: what every image tokenizer and every image prior states about itself."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ImageTokenizerConfig(PreTrainedConfig):
    r"""
    What every tokenizer's configuration holds. Families add their own fields.

    Args:
        image_size (`int`): side in pixels of the square images that the checkpoint was trained on.
        num_channels (`int`): colour channels of `pixel_values`.
        pixel_range (`tuple[float, float]`, *optional*): values that black and white have in `pixel_values` and in
            `sample`. `None`: the space is `(x - image_mean) / image_std` of images in [0, 1].
        image_mean, image_std (`list[float]`, *optional*): used where `pixel_range` is `None`.
        initializer_range (`float`): standard deviation of fresh weights.
    """

    image_size: int = 256
    num_channels: int = 3
    pixel_range: tuple[float, ...] | list[float] | None = (0.0, 1.0)
    image_mean: tuple[float, ...] | list[float] | None = None
    image_std: tuple[float, ...] | list[float] | None = None
    initializer_range: float = 0.02


@strict
class ImagePriorConfig(PreTrainedConfig):
    r"""
    What every prior's configuration holds: the ids it writes, to be compared with its tokenizer.

    Args:
        codebook_size (`int`): number of different ids of one codebook.
        num_codebooks (`int`): ids at one position.
        num_image_tokens (`int`): positions of one image.
        num_classes (`int`): classes of a class-conditional prior, 0 where there are none.
        initializer_range (`float`): standard deviation of fresh weights.
    """

    codebook_size: int = 1024
    num_codebooks: int = 1
    num_image_tokens: int = 256
    num_classes: int = 0
    initializer_range: float = 0.02

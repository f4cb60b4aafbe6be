"""
Teachers: frozen vision models of transformers whose features training aligns with.

    teacher = VisionTeacher.from_pretrained("facebook/dinov2-base")
    output = model(pixel_values, **teacher_kwargs(model, [teacher], model.denormalize_pixels(pixel_values)))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, BaseImageProcessor, PreTrainedModel

from ..hub import HUB_ARGUMENTS
from ..modeling.layers.patches import patchify

# model_type of a configuration -> the class of the image half
CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers of filters


@dataclass
class TeacherFeatures:
    """
    What a teacher says about pictures.

    Args:
        patches: of the last layer, behind its norm where the model has one for patches, `(B, N, F)` in raster order.
        pooled: the class token behind the last norm, or SigLIP's attention pooling, `(B, F)`.
    """

    patches: Tensor
    pooled: Tensor

    @property
    def mean(self) -> Tensor:
        """Average of the patches, `(B, F)`."""
        return self.patches.mean(1)


class VisionTeacher(nn.Module):
    """
    DINOv2 (with or without registers), DINOv3, CLIP, SigLIP and SigLIP 2 (fixed size or NaFlex) as one thing.

    It never trains: no gradients, always in eval mode.

    Args:
        model: of transformers; see `CLASSES`.
        settings: fields of its image processor: `image_mean`, `image_std`, `resample`, and a size.

    Raises:
        ValueError: for another kind of model, or settings without mean, standard deviation or size.
    """

    def __init__(self, model: PreTrainedModel, settings: dict[str, Any]) -> None:
        super().__init__()
        if type(model).__name__ not in CLASSES.values():
            kinds = ", ".join(sorted(set(CLASSES.values())))
            raise ValueError(f"{type(model).__name__} is no known teacher; there are {kinds}.")
        self.model = model.eval().requires_grad_(False)
        self.naflex = type(model).__name__ == "Siglip2VisionModel"
        self.patch_size, self.dim = model.config.patch_size, model.config.hidden_size
        missing = [name for name in ("image_mean", "image_std") if not settings.get(name)]
        if missing:
            raise ValueError(f"The teacher's image processor does not say {', '.join(missing)}.")
        self.mode = MODES.get(settings.get("resample", 3), "bicubic")
        self.side = _side(settings, self.patch_size)
        for name in ("image_mean", "image_std"):
            self.register_buffer(name, torch.tensor(settings[name]).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> "VisionTeacher":
        """
        A teacher of the Hub, the local cache or a folder.

        Args:
            source: id or path. Of CLIP and SigLIP only the image half is loaded.
            options: `revision`, `cache_dir`, `token`, `local_files_only`, `dtype`, ... as in transformers.

        Raises:
            OSError: where it is neither here nor to be had.
            ValueError: for another kind of model.
        """
        hub = {name: value for name, value in options.items() if name in HUB_ARGUMENTS}
        try:
            kind = AutoConfig.from_pretrained(source, **hub).model_type
            settings = BaseImageProcessor.get_image_processor_dict(source, **hub)[0]
            if kind not in CLASSES:
                raise ValueError(f"{source} is a {kind!r}; teachers are {', '.join(CLASSES)}.")
            model = getattr(transformers, CLASSES[kind]).from_pretrained(source, **options)
        except OSError as error:
            raise OSError(
                f"The teacher {source!r} is no local folder, is not in the cache, and could not be downloaded. Without "
                "a network give the path of a folder with config.json, preprocessor_config.json and weights; models "
                f"behind a licence (DINOv3) also need `hf auth login`. transformers says: {error}"
            ) from error
        return cls(model, settings)

    def train(self, mode: bool = True) -> "VisionTeacher":
        """Stays in eval mode."""
        return super().train(False)

    def preprocess(self, images: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """
        The processor's resizing and normalisation on tensors, without its crop: tokenizers see the whole picture.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            grid: rows and columns of patches that are wanted; those of the processor's size where None.

        Returns:
            `(B, 3, rows * patch, columns * patch)`.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"A teacher takes images (B, 3, H, W) in [0, 1], got {tuple(images.shape)}.")
        rows, columns = grid or (self.side // self.patch_size,) * 2
        size, images = (rows * self.patch_size, columns * self.patch_size), images.to(self.image_mean)
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size=size, mode=self.mode, align_corners=False, antialias=True).clamp(0, 1)
        return (images - self.image_mean) / self.image_std

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int] | None = None) -> TeacherFeatures:
        """
        Features of pictures.

        Args:
            images: `(B, 3, H, W)` in [0, 1], any size.
            grid: rows and columns of patches, so that they lie on those of a tokenizer; positions are interpolated.
        """
        pixels = self.preprocess(images, grid).to(self.model.dtype)
        rows, columns = (side // self.patch_size for side in pixels.shape[2:])
        if self.naflex:
            output = self._naflex(pixels, rows, columns)
        elif hasattr(self.model.config, "rope_theta") or type(self.model).__name__.startswith("Dino"):
            output = self.model(pixels)  # these take any size
        else:
            output = self.model(pixels, interpolate_pos_encoding=True)
        pooled = output.pooler_output
        return TeacherFeatures(output.last_hidden_state[:, -rows * columns :], pooled)

    def _naflex(self, pixels: Tensor, rows: int, columns: int) -> Any:
        patches = patchify(pixels, self.patch_size)
        return self.model(
            patches,
            pixel_attention_mask=patches.new_ones(patches.shape[:2], dtype=torch.long),
            spatial_shapes=torch.tensor([[rows, columns]], device=pixels.device).expand(len(patches), -1),
        )


def _side(settings: dict[str, Any], patch: int) -> int:
    """Side of the square that a processor makes."""
    if settings.get("max_num_patches"):
        return isqrt(settings["max_num_patches"]) * patch
    size = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = settings.get("size") if size is None else size
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not isinstance(size, int):
        raise ValueError(f"The teacher's image processor does not say a size: {settings.get('size')!r}.")
    return size


def check_teachers(model: nn.Module, count: int) -> None:
    """Raises a ValueError where a tokenizer's `forward` takes no teacher's features, or those of another number."""
    name, wanted = type(model).__name__, 1 if model.num_teachers is None else model.num_teachers
    if not model.teacher_inputs or not wanted:
        raise ValueError(f"{name} is trained without a teacher's features.")
    if count != wanted:
        raise ValueError(f"{name} takes the features of {wanted} teacher(s), got {count}.")


def teacher_kwargs(model: nn.Module, teachers: Sequence[VisionTeacher], images: Tensor) -> dict[str, Any]:
    """
    What a tokenizer's `forward` wants from teachers, by its `teacher_inputs`, `teacher_grid` and `num_teachers`.

    Args:
        model: a tokenizer of this library.
        teachers: as many as it takes, in its order.
        images: the pictures of the batch, `(B, 3, H, W)` in [0, 1].

    Returns:
        keyword arguments of `model.forward`.

    Raises:
        ValueError: where it takes none, or another number.
    """
    check_teachers(model, len(teachers))
    features = [teacher(images, model.teacher_grid) for teacher in teachers]
    given = {argument: [getattr(f, kind) for f in features] for argument, kind in model.teacher_inputs.items()}
    return given if model.num_teachers is not None else {argument: values[0] for argument, values in given.items()}

"""The base class of every image tokenizer: the contract, its checks and its error messages in one place."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_utils import ImageTokenizerConfig
from .layers.flat_ids import flat_vocab_size, flatten_ids, unflatten_ids
from .outputs import (
    ImageTokenizerDecoderOutput,
    ImageTokenizerEncoderOutput,
    ImageTokenizerOutput,
    TokenSegment,
)

INTEGER_TYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.uint16, torch.uint32)


def _parameter_names(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


class InitWeightsMixin:
    """
    Initialisation rules shared by tokenizers and priors.

    A module that owns bare parameters or tables implements `init_own_weights()` with `transformers.initialization`
    functions (they leave loaded tensors alone). A Linear or Conv that starts at zero carries `zero_init = True`.
    """

    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if getattr(module, "zero_init", False):
            init.zeros_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        own = getattr(module, "init_own_weights", None)
        if own is not None:
            own()


class PreTrainedImageTokenizer(InitWeightsMixin, PreTrainedModel):
    """
    Images to tokens and back.

    A family implements `_encode(pixel_values, **conditioning)`, `_decode(latents, token_mask, **options)`, and, where
    it is discrete, `_ids_to_latents(token_ids)`; `forward` for training. All checks stand here. Which keyword a family
    understands is read off the signatures of those methods; the others are refused by name.

    Class attributes:
        latent_layout: "sequence" `(B, N, D)` or "grid" `(B, D, h, w)`.
        mask_mode: what a masked slot means to `decode`: "attention" (leaves attention), "token" (a learned vector
            takes its place), "pack" (removed, the rest moves up), "segment" (whole leading segments), or "none" (all
            tokens are needed).
        decodes_to: "pixels", "features", "logits", "gaussians", or None where there is no decoder.
        decode_conditioning, encode_conditioning: names of the conditions that the methods take.
        teacher_inputs: arguments of `forward` that take a frozen vision model's features in training -> which:
            "patches" `(B, N, F)` on `teacher_grid`, "pooled" `(B, F)` (its class token) or "mean" `(B, F)`.
    """

    config: ImageTokenizerConfig
    base_model_prefix = "image_tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    latent_layout: str = "sequence"
    mask_mode: str = "none"
    decodes_to: str | None = "pixels"
    decode_conditioning: tuple[str, ...] = ()
    encode_conditioning: tuple[str, ...] = ()
    teacher_inputs: dict[str, str] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # read once per class: signatures are slow, and torch.compile cannot keep a cache of them
        cls._encode_options = _parameter_names(cls._encode)
        cls._decode_options = _parameter_names(cls._decode)
        cls._ids_options = _parameter_names(cls._ids_to_latents)
        if "get_codebook_entry" in cls.__dict__:  # public, implemented by families, and it reads weights
            cls.get_codebook_entry = apply_forward_hook(cls.get_codebook_entry)

    # ------------------------------------------------------------------ what a checkpoint says about itself

    @property
    def codebook_size(self) -> int | None:
        """Number of different ids of one codebook; `None` for continuous tokenizers."""
        return getattr(self.config, "codebook_size", None) if self.is_discrete else None

    @property
    def num_codebooks(self) -> int:
        """Ids at one position: 1 means ids of shape `(B, N)`, more means `(B, N, C)`."""
        return getattr(self.config, "num_codebooks", 1)

    @property
    def num_tokens(self) -> int:
        """Positions of one image at the configured `image_size`, all of them."""
        raise NotImplementedError

    @property
    def latent_dim(self) -> int:
        """Width D of `latents`."""
        raise NotImplementedError

    @property
    def is_discrete(self) -> bool:
        """Whether tokens are ids of a codebook."""
        return True

    @property
    def is_prefix_ordered(self) -> bool:
        """Whether any number of first tokens is a coarser picture."""
        return False

    @property
    def teacher_grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches on which a teacher's features have to lie; None where its own grid will do."""
        side = getattr(self.config, "grid_size", None)
        return None if side is None or "patches" not in self.teacher_inputs.values() else (side, side)

    @property
    def num_teachers(self) -> int | None:
        """Number of teachers where `forward` takes lists of their features; None where it takes those of one."""
        return None

    @property
    def valid_num_tokens(self) -> Sequence[int]:
        """Numbers of tokens that `decode` takes, ascending."""
        return range(1, self.num_tokens + 1) if self.is_prefix_ordered else (self.num_tokens,)

    @property
    def bits_per_image(self) -> float | None:
        """Bits of one image's ids at full length, unentropy-coded; `None` for continuous tokenizers."""
        if not self.is_discrete:
            return None
        return self.num_tokens * self.num_codebooks * math.log2(self.codebook_size)

    def token_segments(self, height: int | None = None, width: int | None = None) -> list[TokenSegment]:
        """Maps of a flat token sequence for an image of `height` x `width` pixels, in order."""
        return [TokenSegment("tokens", (self.num_tokens,), self.codebook_size or 0)]

    def _check_image_size(self, height: int, width: int) -> None:
        """Raises unless the model has a rule for images of this size. The default takes the configured size only."""
        size = self.config.image_size
        if (height, width) != (size, size):
            raise ValueError(
                f"{type(self).__name__} takes images of {size} x {size} pixels, got {height} x {width}. "
                "Its processor resizes pictures: AutoImageTokenizerProcessor.from_pretrained(...)."
            )

    # ------------------------------------------------------------------ encode

    @apply_forward_hook
    def encode(
        self,
        pixel_values: Tensor,
        num_tokens: int | Tensor | None = None,
        *,
        sample_posterior: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        **conditioning: Any,
    ) -> ImageTokenizerEncoderOutput:
        """
        Turns images into tokens.

        Args:
            pixel_values: `(B, 3, H, W)` in the checkpoint's `pixel_range`, as its processor makes them; cast to the
                model's dtype.
            num_tokens: keep the first `num_tokens` of a prefix-ordered tokenizer; a LongTensor `(B,)` gives each
                image its own budget (as `token_mask`).
            sample_posterior: draw from the posterior of a KL tokenizer instead of taking its mode.
            generator: random generator of that draw.
            noise: standard normal draws to use instead, in the layout of `latents`.
            conditioning: what `encode_conditioning` names.

        Returns:
            [`ImageTokenizerEncoderOutput`]

        Raises:
            ValueError: for images of a wrong rank, channel count, size or dtype, with NaN or infinities, for an empty
                batch, an impossible `num_tokens`, or an option that this tokenizer does not have.
        """
        self._check_pixel_values(pixel_values)
        wanted = self._encode_options
        self._refuse_unknown("encode", conditioning, wanted)
        if "num_tokens" in wanted:  # the family has its own meaning for it: a budget, a picture size
            conditioning["num_tokens"] = num_tokens
        draws = {"sample_posterior": sample_posterior, "generator": generator, "noise": noise}
        conditioning.update({name: value for name, value in draws.items() if name in wanted})
        output = self._encode(pixel_values.to(self.dtype), **conditioning)
        if output.latent_dist is not None and output.latents is None:
            draw = sample_posterior or noise is not None
            dist = output.latent_dist
            output.latents = dist.sample(generator=generator, noise=noise) if draw else dist.mode()
        elif sample_posterior and "sample_posterior" not in wanted and output.latent_dist is None:
            raise ValueError(f"{type(self).__name__} has no posterior to sample from: drop `sample_posterior`.")
        return output if "num_tokens" in wanted else self._keep_first(output, num_tokens)

    def _encode(self, pixel_values: Tensor, **conditioning: Any) -> ImageTokenizerEncoderOutput:
        raise NotImplementedError

    def _check_pixel_values(self, pixel_values: Tensor) -> None:
        name, channels = type(self).__name__, self.config.num_channels
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            found = getattr(pixel_values, "dtype", type(pixel_values).__name__)
            raise ValueError(f"{name}.encode takes a float tensor of shape (B, {channels}, H, W), got {found}.")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"{name}.encode takes pixels (B, {channels}, H, W), got {tuple(pixel_values.shape)}.")
        if pixel_values.shape[0] == 0:
            raise ValueError(f"{name}.encode got an empty batch of shape {tuple(pixel_values.shape)}.")
        self._check_image_size(pixel_values.shape[2], pixel_values.shape[3])
        if not torch.compiler.is_compiling() and not bool(pixel_values.isfinite().all()):
            raise ValueError(f"{name}.encode: pixel_values hold NaN or infinities.")

    def _refuse_unknown(self, method: str, options: dict[str, Any], known: frozenset[str]) -> None:
        unknown = [name for name in options if name not in known]
        if unknown:
            can = sorted(known - {"self", "pixel_values", "latents", "token_mask"}) or ["none"]
            raise ValueError(
                f"{type(self).__name__}.{method} does not take {', '.join(unknown)}; options it has: {', '.join(can)}."
            )

    def _keep_first(
        self, output: ImageTokenizerEncoderOutput, num_tokens: int | Tensor | None
    ) -> ImageTokenizerEncoderOutput:
        """Shortens a full encoding of a prefix-ordered tokenizer; a tensor of budgets becomes a mask."""
        if num_tokens is None:
            return output
        if isinstance(num_tokens, Tensor):
            output.token_mask = self._budget_mask(num_tokens, output.latents)
            return output
        self._check_num_tokens(num_tokens)
        for name in ("latents", "token_ids", "pre_quant"):
            value = getattr(output, name)
            if value is not None and self.latent_layout == "sequence":
                setattr(output, name, value[:, :num_tokens])
        return output

    def _check_num_tokens(self, num_tokens: int) -> None:
        valid = self.valid_num_tokens
        if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or num_tokens not in valid:
            raise ValueError(
                f"{type(self).__name__} has {_describe(valid)} tokens; num_tokens={num_tokens!r} is not among them."
            )

    def _budget_mask(self, num_tokens: Tensor, latents: Tensor) -> Tensor:
        batch, length = latents.shape[0], self.num_tokens
        if num_tokens.shape != (batch,) or num_tokens.dtype not in INTEGER_TYPES:
            raise ValueError(
                f"num_tokens as a tensor must be integers of shape ({batch},), one per image, got "
                f"{num_tokens.dtype} {tuple(num_tokens.shape)}."
            )
        for value in num_tokens.unique().tolist():
            self._check_num_tokens(value)
        return torch.arange(length, device=latents.device) < num_tokens.to(latents.device)[:, None]

    # ------------------------------------------------------------------ decode

    @apply_forward_hook
    def decode(
        self,
        latents: Tensor,
        token_mask: Tensor | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        noise: Tensor | dict[str, Tensor] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        **conditioning: Any,
    ) -> ImageTokenizerDecoderOutput:
        """
        Turns latents into images (or into what `decodes_to` names).

        Args:
            latents: as `encode(...).latents`; cast to the model's dtype.
            token_mask: bool `(B, N)`, False for tokens to leave out; see `mask_mode`.
            image_size: size of the picture, where the family can choose it.
            generator: random generator of stochastic decoders, or one per image.
            noise: the draws to use instead.
            num_inference_steps, guidance_scale: of flow and diffusion decoders; `None` means as published.
            conditioning: what `decode_conditioning` names.

        Returns:
            [`ImageTokenizerDecoderOutput`], `sample` in the checkpoint's `pixel_range`, not clamped.

        Raises:
            ValueError: for latents or a mask of a wrong shape, or an option that this decoder does not have.
        """
        options = {
            "image_size": image_size,
            "generator": generator,
            "noise": noise,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            **conditioning,
        }
        given = {name: value for name, value in options.items() if value is not None}
        self._refuse_unknown("decode", given, self._decode_options)
        missing = [name for name in self.decode_conditioning if name not in given]
        if missing:
            raise ValueError(f"{type(self).__name__}.decode also needs {', '.join(missing)}.")
        self._check_latents(latents)
        return self._decode(latents.to(self.dtype), self._check_token_mask(token_mask, latents), **given)

    def _decode(self, latents: Tensor, token_mask: Tensor | None, **options: Any) -> ImageTokenizerDecoderOutput:
        raise NotImplementedError

    def _check_latents(self, latents: Tensor) -> None:
        name, dim = type(self).__name__, self.latent_dim
        grid = self.latent_layout == "grid"
        shape, rank = ("(B, {}, h, w)", 4) if grid else ("(B, N, {})", 3)
        width = latents.shape[1 if grid else -1] if latents.ndim == rank else None
        if width != dim or not latents.is_floating_point():
            raise ValueError(
                f"{name}.decode takes float latents {shape.format(dim)}, got {latents.dtype} {tuple(latents.shape)}."
            )
        if not grid and latents.shape[1] not in self.valid_num_tokens:
            raise ValueError(f"{name} decodes {_describe(self.valid_num_tokens)} tokens, got {latents.shape[1]}.")

    def _check_token_mask(self, token_mask: Tensor | None, latents: Tensor) -> Tensor | None:
        if token_mask is None:
            return None
        length = latents.shape[1] if self.latent_layout == "sequence" else latents.shape[2] * latents.shape[3]
        if token_mask.dtype != torch.bool or token_mask.shape != (latents.shape[0], length):
            raise ValueError(
                f"token_mask must be bool of shape {(latents.shape[0], length)}, got {token_mask.dtype} "
                f"{tuple(token_mask.shape)}."
            )
        if self.mask_mode == "none":
            if not bool(token_mask.all()):
                raise ValueError(f"{type(self).__name__} needs all its tokens: token_mask must be True everywhere.")
            return None
        return token_mask.to(latents.device)

    # ------------------------------------------------------------------ ids

    @apply_forward_hook
    def ids_to_latents(
        self, token_ids: Tensor, token_mask: Tensor | None = None, *, image_size: int | tuple[int, int] | None = None
    ) -> Tensor:
        """
        Turns ids into what `decode` takes.

        Args:
            token_ids: int64 `(B, N)` or `(B, N, C)`.
            token_mask: bool `(B, N)`, where the codes of masked slots matter.
            image_size: height and width in pixels of a grid that is not square.

        Raises:
            ValueError: for ids of a wrong dtype, rank, count or range.
        """
        self._check_token_ids(token_ids)
        given = {"token_mask": token_mask, "image_size": image_size}
        given = {name: value for name, value in given.items() if value is not None and name in self._ids_options}
        return self._ids_to_latents(token_ids.long(), **given)

    def _ids_to_latents(self, token_ids: Tensor) -> Tensor:
        return self.get_codebook_entry(token_ids)

    def get_codebook_entry(self, token_ids: Tensor) -> Tensor:
        """Rows of the codebook: `(B, N, D)`, or `(B, N, C, D)` for C codebooks."""
        raise NotImplementedError

    def decode_tokens(
        self, token_ids: Tensor, token_mask: Tensor | None = None, **decode_kwargs: Any
    ) -> ImageTokenizerDecoderOutput:
        """`decode(ids_to_latents(token_ids))`; arguments, result and errors are theirs."""
        latents = self.ids_to_latents(token_ids, token_mask, image_size=decode_kwargs.get("image_size"))
        return self.decode(latents, token_mask, **decode_kwargs)

    def _id_bounds(self, token_ids: Tensor) -> int | Tensor:
        """Exclusive upper bounds of ids, to be broadcast over `(B, N)` or `(B, N, C)`."""
        return self.codebook_size

    def _check_token_ids(self, token_ids: Tensor) -> None:
        name = type(self).__name__
        if not self.is_discrete:
            raise ValueError(f"{name} is continuous: it has latents and no ids; use decode(latents).")
        shape = "(B, N)" if self.num_codebooks == 1 else f"(B, N, {self.num_codebooks})"
        if not isinstance(token_ids, Tensor) or token_ids.dtype not in INTEGER_TYPES:
            found = getattr(token_ids, "dtype", type(token_ids).__name__)
            raise ValueError(f"{name}: token_ids must be an int64 tensor {shape}, got {found}.")
        if token_ids.ndim != (2 if self.num_codebooks == 1 else 3) or 0 in token_ids.shape:
            raise ValueError(f"{name}: token_ids must have shape {shape}, got {tuple(token_ids.shape)}.")
        self._check_token_count(token_ids)
        if torch.compiler.is_compiling():
            return
        token_ids = token_ids.long()  # torch does not compare unsigned integers
        bounds = self._id_bounds(token_ids)
        if bool(((token_ids < 0) | (token_ids >= bounds)).any()):
            low, high = int(token_ids.min()), int(token_ids.max())
            top = int(bounds.max()) if isinstance(bounds, Tensor) else bounds
            raise ValueError(f"{name}: token_ids must lie in [0, {top - 1}], got values from {low} to {high}.")

    def _check_token_count(self, token_ids: Tensor) -> None:
        count, codebooks = token_ids.shape[1], token_ids.shape[2:] or (1,)
        if count not in self.valid_num_tokens:
            raise ValueError(
                f"{type(self).__name__}: expected {_describe(self.valid_num_tokens)} tokens per image, got {count}."
            )
        if codebooks[0] != self.num_codebooks:
            raise ValueError(f"{type(self).__name__}: expected {self.num_codebooks} codebooks, got {codebooks[0]}.")

    # ------------------------------------------------------------------ one sequence for a language model

    @property
    def vocab_size(self) -> int:
        """Number of different ids of `flatten_ids`: each codebook has a range of its own."""
        return flat_vocab_size(self)

    def flatten_ids(self, token_ids: Tensor) -> Tensor:
        """
        One sequence of ids for a language model.

        Args:
            token_ids: `(B, N)`, or `(B, N, C)`.

        Returns:
            int64 `(B, N)`, or `(B, N * C)` with the C ids of a position side by side; ids of different codebooks lie
            in different ranges, all in [0, vocab_size).
        """
        self._check_token_ids(token_ids)
        return flatten_ids(self, token_ids.long())

    def unflatten_ids(self, flat_ids: Tensor) -> Tensor:
        """
        The inverse of `flatten_ids`.

        Raises:
            ValueError: for a length that is no whole number of positions, or an id out of its codebook's range.
        """
        token_ids = unflatten_ids(self, flat_ids.long())
        self._check_token_ids(token_ids)
        return token_ids

    # ------------------------------------------------------------------ sugar and training

    def normalize_pixels(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to the space of `pixel_values`."""
        mean, std = self._pixel_affine(images)
        return (images - mean) / std

    def denormalize_pixels(self, sample: Tensor) -> Tensor:
        """The space of `sample` to images in [0, 1], not clamped."""
        mean, std = self._pixel_affine(sample)
        return sample * std + mean

    def _pixel_affine(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        if self.config.pixel_range is not None:
            low, high = self.config.pixel_range
            return -low / (high - low), 1.0 / (high - low)
        shape = (1, -1, 1, 1)
        return (like.new_tensor(self.config.image_mean).view(shape), like.new_tensor(self.config.image_std).view(shape))

    def tokenize(self, images: Tensor, num_tokens: int | None = None) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] to ids, or to latents where the tokenizer is continuous."""
        output = self.encode(self.normalize_pixels(images), num_tokens)
        return output.token_ids if self.is_discrete else output.latents

    def detokenize(self, tokens: Tensor, **decode_kwargs: Any) -> Tensor:
        """The inverse of `tokenize`: images in [0, 1], clamped."""
        decode = self.decode_tokens if self.is_discrete else self.decode
        return self.denormalize_pixels(decode(tokens, **decode_kwargs).sample).clamp(0, 1)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ImageTokenizerOutput:
        """Encodes, quantizes and decodes `pixel_values`, and returns the family's losses for training."""
        raise NotImplementedError


def _describe(valid: Sequence[int]) -> str:
    """A short text for a set of token counts."""
    if isinstance(valid, range) and len(valid) > 3:
        step = f" in steps of {valid.step}" if valid.step != 1 else ""
        return f"{valid[0]} to {valid[-1]}{step}"
    return " or ".join(str(value) for value in valid)

"""Pictures of a class or a text by a flow in the latents of a continuous tokenizer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.dit_family.modeling_dit_family import LatentFlowTransformer
from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.layers.conv_codec import flatten_grid
from ..modeling.layers.sampling import draw_normal
from ..modeling.modeling_utils import PreTrainedImageTokenizer
from ..modeling.wrapped.modeling_wrapped import WrappedTokenizerModel
from .pipeline_utils import LOADERS, GeneratorArgument, ImageTokenPipeline
from .prompting import check_prompts, encode_texts, named_features, repeat_rows

Labels = int | list[int] | Tensor


class LatentFlowPipeline(ImageTokenPipeline):
    """
    Generation with a latent flow or diffusion transformer (DiT, SiT, LightningDiT, DiT-DH and what is built on them).

    Args:
        image_tokenizer: a continuous tokenizer; a diffusers `AutoencoderKL` is wrapped, sharing its weights.
        transformer: the generator. Where it lacks the statistics of its latents, it takes the tokenizer's own.
        weak_transformer: the weaker generator of autoguidance (RAE).
        text_encoder, tokenizer: of a generator of texts.
        image_processor: makes pictures; one for the tokenizer's pixel range where None.

    Raises:
        ValueError: where the components do not belong together.
    """

    original_component = "transformer"
    model_cpu_offload_seq = "text_encoder->transformer->image_tokenizer"
    _exclude_from_cpu_offload = ["weak_transformer"]  # it takes turns with the transformer, step by step
    _optional_components = ["weak_transformer", "text_encoder", "tokenizer", "image_processor"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        image_tokenizer: PreTrainedImageTokenizer | AutoencoderKL,
        transformer: LatentFlowTransformer,
        weak_transformer: LatentFlowTransformer | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: ImageTokenizerProcessor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(image_tokenizer, AutoencoderKL):
            image_tokenizer = WrappedTokenizerModel.wrap(image_tokenizer)
        check_latents(transformer, image_tokenizer)
        if weak_transformer is not None:
            check_latents(weak_transformer, image_tokenizer)
        for generator in (transformer, weak_transformer):
            adopt_statistics(generator, image_tokenizer)
        if transformer.config.text_dim is not None and (text_encoder is None) != (tokenizer is None):
            raise ValueError("Give both text_encoder and tokenizer, or neither (and prompt_embeds to each call).")
        if image_processor is None:
            image_processor = ImageTokenizerProcessor.for_config(image_tokenizer.config)
        self.register_modules(
            image_tokenizer=image_tokenizer,
            transformer=transformer,
            weak_transformer=weak_transformer,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_processor=image_processor,
        )

    @classmethod
    def _from_original(cls, source: str, kwargs: dict[str, Any]) -> "LatentFlowPipeline":
        """A generator's checkpoint of the authors, which may hold the weaker generator too."""
        names = cls._component_names()
        given = {name: value for name, value in kwargs.items() if name in names}
        if "image_tokenizer" not in given:
            raise ValueError(
                f"{source} is an original checkpoint of the transformer alone; give {cls.__name__}.from_pretrained "
                "also image_tokenizer= (an id, a folder or an object)."
            )
        rest = {name: value for name, value in kwargs.items() if name not in names}
        return cls(**{**LOADERS["flow_parts"](source, **rest), **given})

    # ------------------------------------------------------------------ conditions

    def encode_prompt(
        self, prompt: str | list[str], num_images_per_prompt: int = 1, *, allow_empty: bool = False
    ) -> tuple[Tensor, Tensor]:
        """
        States of prompts `(B, L, F)` and their mask `(B, L)`.

        Args:
            prompt: one text or several.
            num_images_per_prompt: rows per text.
            allow_empty: whether "" is a text.

        Raises:
            ValueError: for what is no text, texts that are too long, and where there is no text encoder.
        """
        prompts = check_prompts(prompt, allow_empty=allow_empty)
        if self.text_encoder is None:
            raise ValueError("This pipeline has no text_encoder: it draws classes (class_labels=) or prompt_embeds.")
        limit = min(self.tokenizer.model_max_length, self.transformer.config.text_length)
        found = encode_texts(self.tokenizer, self.text_encoder, prompts, limit, self._execution_device)
        found = repeat_rows(found, num_images_per_prompt)
        return found["encoder_hidden_states"], found["encoder_attention_mask"]

    def _condition(
        self, labels: Labels | None, prompt: Any, embeds: Tensor | None, mask: Tensor | None, count: int
    ) -> dict[str, Tensor] | None:
        """What a call asks for under the transformer's names, `count` rows each; None where it asks for nothing."""
        if sum(value is not None for value in (labels, prompt, embeds)) > 1:
            raise ValueError("Give one of class_labels, prompt and prompt_embeds.")
        if prompt is not None:
            if self.transformer.config.text_dim is None:
                raise ValueError("This generator draws classes: give class_labels, and no prompt.")
            embeds, mask = self.encode_prompt(prompt)
        if labels is None and embeds is None:
            return None
        if labels is not None:
            found = {"class_labels": self.transformer.check_labels(labels)}
        else:
            found = named_features(embeds, mask)
        return repeat_rows({name: value.to(self._execution_device) for name, value in found.items()}, count)

    @staticmethod
    def _fit(negative: dict[str, Tensor] | None, batch: int) -> dict[str, Tensor] | None:
        """One thing to stay away from may stand for all pictures."""
        if negative is None:
            return None
        rows = len(next(iter(negative.values())))
        if rows not in (1, batch):
            raise ValueError(f"Got {rows} negative conditions for {batch} pictures: give one, or as many.")
        return {name: value.expand(batch, *value.shape[1:]) for name, value in negative.items()}

    def check_statistics(self) -> None:
        """Raises a ValueError where statistics of the latents are missing, before anything is computed."""
        self.transformer.check_latent_statistics()
        missing = getattr(self.image_tokenizer.config, "has_statistics", True) is False
        if missing and self.transformer.config.latent_norm == "none":
            raise ValueError(
                f"This generator's latents are normalised by the statistics of its tokenizer, and this "
                f"{type(self.image_tokenizer).__name__} has none: `hf-vistok stats` computes them, and set_statistics("
                "mean, var) takes the authors' own (mean 0 and variance 1 for a generator of raw latents)."
            )

    # ------------------------------------------------------------------ call

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        prompt: str | list[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        guidance: str | None = None,
        guidance_channels: int | None = None,
        guidance_intervals: Sequence[Sequence[float]] | None = None,
        negative_class_labels: Labels | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        sampler: str | None = None,
        generator: GeneratorArgument = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """
        Draws pictures. Settings that are None are as published.

        Args:
            class_labels, prompt: one or several, of a generator of classes or of texts.
            num_images_per_prompt: pictures per class or prompt.
            guidance_scale: weight of guidance; 1 means none.
            guidance: "cfg" or "autoguidance" (by `weak_transformer`).
            guidance_channels: number of guided channels, 0 for all.
            guidance_intervals: times `(low, high)` of guidance; see `guidance_active` of the transformer.
            negative_class_labels, negative_prompt: what to stay away from, one for all pictures or one each.
            negative_guidance_scale: weight of that beside the null condition (three rows per picture in one forward);
                without, it takes the null condition's place (two rows).
            num_inference_steps: as the authors count.
            sampler: see `LatentFlowTransformer.sample_latents`.
            generator: random generator, or one per picture.
            latents: standard normal noise `(B, C, h, w)` to start from.
            prompt_embeds, prompt_attention_mask: what `encode_prompt` returns, in place of prompts.
            negative_prompt_embeds, negative_prompt_attention_mask: the same of what to stay away from.
            output_type: "pil", "np", "pt", or "latent" for the image tokenizer's latents.
            return_dict: whether to return an `ImagePipelineOutput`.
            callback_on_step_end: `f(pipeline, step, timestep, {"latents": ...})`, may return other latents of the flow.
            callback_on_step_end_tensor_inputs: names of what the callback gets.

        Raises:
            ValueError: for conditions or settings that do not fit, and where statistics of the latents are missing.
        """
        self.check_output_type(output_type)
        self.check_statistics()
        if isinstance(num_images_per_prompt, bool) or num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt!r}.")
        wanted = self._condition(class_labels, prompt, prompt_embeds, prompt_attention_mask, num_images_per_prompt)
        if wanted is None:
            raise ValueError("Give class_labels, a prompt, or prompt_embeds.")
        batch = len(next(iter(wanted.values())))
        avoided = self._condition(
            negative_class_labels, negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask, 1
        )
        self.check_generators(generator, batch)
        latents = self._sample(
            self._start(latents, batch, generator),
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            **wanted,
            negative=self._fit(avoided, batch),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance=guidance,
            guidance_channels=guidance_channels,
            guidance_intervals=guidance_intervals,
            negative_guidance_scale=negative_guidance_scale,
            sampler=sampler,
            generator=generator,
        )
        images = self._draw(self.transformer.denormalize_latents(latents), output_type, generator)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sample(self, noise: Tensor, callback: Callable | None, names: list[str] | None, **settings: Any) -> Tensor:
        """The transformer's `sample_latents` under a progress bar, with the caller's callback."""
        names = names or self._callback_tensor_inputs
        times = self.transformer.sample_times(settings["num_inference_steps"], settings["sampler"])
        with self.progress_bar(total=len(times)) as bar:

            def on_step(step: int, t: float, x: Tensor) -> Tensor | None:
                bar.update()
                return self.run_callback(callback, names, step, {"latents": x}, t).get("latents")

            return self.transformer.sample_latents(noise, weak_model=self.weak_transformer, on_step=on_step, **settings)

    def _start(self, noise: Tensor | None, batch: int, generator: GeneratorArgument) -> Tensor:
        config = self.transformer.config
        shape = (batch, config.in_channels, config.sample_size, config.sample_size)
        if noise is None:
            return draw_normal(shape, generator, self._execution_device)
        if tuple(noise.shape) != shape:
            raise ValueError(f"latents must be noise of shape {shape}, got {tuple(noise.shape)}.")
        return noise.to(self._execution_device)

    def _draw(self, latents: Tensor, output_type: str, generator: GeneratorArgument) -> Any:
        if self.image_tokenizer.latent_layout == "sequence":
            latents = flatten_grid(latents)  # (B, D, h, w) -> (B, h * w, D)
        if output_type == "latent":
            return latents
        stochastic = "generator" in self.image_tokenizer._decode_options  # flow decoders draw noise of their own
        sample = self.image_tokenizer.decode(latents, **({"generator": generator} if stochastic else {})).sample
        return self.image_processor.postprocess(sample.float(), output_type)


def check_latents(transformer: LatentFlowTransformer, image_tokenizer: PreTrainedImageTokenizer) -> None:
    """
    Whether a generator's latents are those of a tokenizer.

    Raises:
        ValueError: where the tokenizer writes ids or needs conditions, or width or number of positions differ.
    """
    name = type(image_tokenizer).__name__
    if image_tokenizer.is_discrete:
        raise ValueError(f"{name} writes ids; a latent flow needs a continuous tokenizer.")
    if image_tokenizer.decode_conditioning:
        raise ValueError(f"{name}.decode also needs {', '.join(image_tokenizer.decode_conditioning)}.")
    channels, side = transformer.config.in_channels, transformer.config.sample_size
    if image_tokenizer.latent_dim != channels:
        raise ValueError(
            f"The generator's latents have {channels} channels, the tokenizer's {image_tokenizer.latent_dim}."
        )
    if image_tokenizer.num_tokens == side**2:
        return
    own = math.isqrt(image_tokenizer.num_tokens)
    size = image_tokenizer.config.image_size * side // max(own, 1)
    try:  # convolutional tokenizers draw other sizes too
        image_tokenizer._check_image_size(size, size)
    except ValueError as error:
        raise ValueError(
            f"The generator's latents have {side} x {side} positions, the tokenizer's {image_tokenizer.num_tokens}."
        ) from error


def adopt_statistics(transformer: LatentFlowTransformer | None, image_tokenizer: PreTrainedImageTokenizer) -> None:
    """Gives a generator that normalises by channel, and lacks the statistics, those that the tokenizer carries."""
    if (
        transformer is None
        or transformer.config.latent_norm != "channel"
        or transformer.config.latents_mean is not None
    ):
        return
    config = image_tokenizer.config
    noted = getattr(config, "latent_statistics", None) or {}
    mean = noted.get("mean", getattr(config, "latents_mean", None))
    std = noted.get("std", getattr(config, "latents_std", None))
    if isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)):
        transformer.set_latent_statistics(mean, std)

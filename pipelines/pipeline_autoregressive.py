"""Pictures of a class or a text by an autoregressive prior: it writes ids, any discrete image tokenizer draws them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.ar_prior_utils import PreTrainedARPrior
from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.layers.guidance import check_scale
from ..modeling.modeling_utils import PreTrainedImageTokenizer
from .pipeline_utils import GeneratorArgument, ImageTokenPipeline, check_codebooks
from .prompting import Ranking, check_prompts, encode_texts, repeat_rows, rows_of

RankBy = str | Callable[[list[Any], list[Any] | None], Any]


@dataclass
class AutoregressivePipelineOutput(ImagePipelineOutput):
    """
    What [`AutoregressivePipeline`] returns.

    Args:
        images: as `output_type` says.
        prior_token_ids: the ids that were drawn, int64 `(B, N)` or `(B, N, C)`.
        log_probs: log-probability of each sequence under the prior, `(B,)`; None where nothing was written.
    """

    prior_token_ids: Tensor | None = None
    log_probs: Tensor | None = None


class AutoregressivePipeline(ImageTokenPipeline):
    """
    Text-to-image or class-conditional generation with an autoregressive prior.

    Args:
        image_tokenizer: draws ids.
        prior: writes ids.
        tokenizer, text_encoder: of prompts (T5, CLIP, ... of transformers); None for priors on classes.
        image_processor: makes pictures; one for the tokenizer's pixel range where None.

    Raises:
        ValueError: where prior and image tokenizer have different codebooks, or numbers of tokens that do not fit.
    """

    original_component = "prior"
    model_cpu_offload_seq = "text_encoder->prior->image_tokenizer"
    _optional_components = ["tokenizer", "text_encoder", "image_processor"]
    _callback_tensor_inputs = ["token_ids"]

    def __init__(
        self,
        image_tokenizer: PreTrainedImageTokenizer,
        prior: PreTrainedARPrior,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
        image_processor: ImageTokenizerProcessor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(prior, PreTrainedARPrior):
            raise ValueError(f"prior must be an autoregressive prior, got {type(prior).__name__}.")
        check_codebooks(prior, image_tokenizer)
        sequence = image_tokenizer.latent_layout == "sequence"  # grids draw any number of tokens that is a picture
        if sequence and prior.num_tokens not in image_tokenizer.valid_num_tokens:
            raise ValueError(
                f"The prior writes {prior.num_tokens} tokens, the image tokenizer has {image_tokenizer.num_tokens}."
            )
        if (tokenizer is None) != (text_encoder is None):
            raise ValueError("tokenizer and text_encoder belong together: give both or none.")
        if image_processor is None:
            image_processor = processor_of(image_tokenizer)
        self.register_modules(
            image_tokenizer=image_tokenizer,
            prior=prior,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            image_processor=image_processor,
        )

    # ------------------------------------------------------------------ conditions

    def encode_prompt(
        self, prompt: str | list[str], num_images_per_prompt: int = 1, *, allow_empty: bool = False
    ) -> dict[str, Tensor]:
        """
        Features of prompts: `encoder_hidden_states`, `encoder_attention_mask`, and `pooled_projections` if there are.

        Where the features are padded is the prior's own business: it moves them to the side that it was trained with.

        Args:
            prompt: one text or several.
            num_images_per_prompt: rows per text.
            allow_empty: whether "" is a text; it stands for "no text".

        Raises:
            ValueError: for an empty text, one that is too long, something that is no text, or without a text encoder.
        """
        prompts = check_prompts(prompt, allow_empty=allow_empty)
        if self.text_encoder is None:
            raise ValueError("This pipeline has no text_encoder: it draws classes (class_labels=).")
        own, limit = self.tokenizer.model_max_length, self.prior.text_length
        longest = own if limit is None else min(limit, own)
        features = encode_texts(self.tokenizer, self.text_encoder, prompts, longest, self._execution_device)
        return repeat_rows(features, num_images_per_prompt)

    def _conditions(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | list[int] | Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        count: int = 1,
    ) -> tuple[dict[str, Any], int]:
        """Arguments of the prior, and the number of rows; nothing and 0 where there is nothing to write about."""
        given = [value is not None for value in (prompt, class_labels, prompt_embeds)]
        if sum(given) > 1:
            raise ValueError("Give one of prompt, class_labels and prompt_embeds.")
        if not any(given):
            return {}, 0
        if class_labels is not None:
            if negative_prompt is not None or negative_prompt_embeds is not None:
                raise ValueError("A negative prompt needs a prompt: this call draws classes.")
            labels = self.prior.check_class_labels(class_labels).repeat_interleave(count)
            return {"class_labels": labels}, len(labels)
        if prompt is not None:
            text = self.encode_prompt(prompt, count)
        else:
            text = _named(prompt_embeds, prompt_attention_mask, count)
        batch = len(text["encoder_hidden_states"])
        if negative_prompt_embeds is not None:
            negative = _named(negative_prompt_embeds, negative_prompt_attention_mask, count)
        else:
            negative = self._negative(negative_prompt, batch // count, count)
        both = {**text, **{f"negative_{name}": value for name, value in negative.items()}}
        known = inspect.signature(self.prior.condition).parameters
        return {name: value for name, value in both.items() if name.removeprefix("negative_") in known}, batch

    def _negative(self, negative_prompt: str | list[str] | None, prompts: int, count: int) -> dict[str, Tensor]:
        """Features to stay away from: a prompt's, or the empty string's where the prior has no null text of its own."""
        if negative_prompt is None and (not self.prior.needs_negative_text or self.text_encoder is None):
            return {}
        texts = check_prompts("" if negative_prompt is None else negative_prompt, "negative_prompt", True)
        texts = texts * prompts if len(texts) == 1 else texts
        if len(texts) != prompts:
            raise ValueError(f"Got {len(texts)} negative prompts for {prompts} prompts: give one, or as many.")
        return self.encode_prompt(texts, count, allow_empty=True)

    # ------------------------------------------------------------------ checks

    def _check_prior_options(self, options: dict[str, Any]) -> None:
        known = set(inspect.signature(self.prior.generate).parameters) - {"options", "kwargs", "self"}
        known |= set(self.prior.schedule_settings)
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"{type(self.prior).__name__}.generate does not take {', '.join(unknown)}.")

    def _guidance(self, guidance_scale: Any, prior_guidance_scale: Any) -> tuple[Any, dict[str, Any]]:
        """Guidance of the prior, and of a decoder that is guided too."""
        for name, value in (("guidance_scale", guidance_scale), ("prior_guidance_scale", prior_guidance_scale)):
            if not callable(value):
                check_scale(name, value)
        if "guidance_scale" in inspect.signature(type(self.image_tokenizer)._decode).parameters:
            return prior_guidance_scale, {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        return (guidance_scale if prior_guidance_scale is None else prior_guidance_scale), {}

    # ------------------------------------------------------------------ the two halves

    def _write(
        self,
        condition: dict[str, Any],
        batch: int,
        callback: Callable | None,
        names: list[str] | None,
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Ids and log-probabilities; runs progress bar and callback after each step."""
        self.check_generators(options.get("generator"), batch)
        names = names or self._callback_tensor_inputs
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs {unknown}; there are {self._callback_tensor_inputs}.")
        written = [] if prior_token_ids is None else [prior_token_ids.to(self._execution_device)]
        steps = len(self.prior.step_lengths(self.prior.num_tokens if num_tokens is None else num_tokens))
        with self.progress_bar(total=steps) as bar:

            def on_step(step: int, ids: Tensor) -> None:
                bar.update()
                if callback is not None:
                    written.append(ids)
                    self.run_callback(callback, names, step, {"token_ids": torch.cat(written, 1)})

            output = self.prior.generate(
                **condition, prior_token_ids=prior_token_ids, num_tokens=num_tokens, token_streamer=on_step, **options
            )
        return output.token_ids, output.log_probs

    @torch.no_grad()
    def generate_prior_tokens(
        self,
        prompt: str | list[str] | None = None,
        *,
        class_labels: int | list[int] | Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        num_images_per_prompt: int = 1,
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        guidance_scale: Any = None,
        prior_guidance_scale: Any = None,
        generator: GeneratorArgument = None,
        **prior_options: Any,
    ) -> Tensor:
        """
        The first half of a call: ids `(B, num_tokens)`; arguments as in `__call__`.

        Raises:
            ValueError: as `__call__`.
        """
        self._check_prior_options(prior_options)
        count = Ranking(None, num_images_per_prompt).candidates
        texts = (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)
        condition, batch = self._conditions(prompt, class_labels, negative_prompt, *texts, count)
        if not batch:
            raise ValueError("Give prompt, class_labels or prompt_embeds.")
        scale = self._guidance(guidance_scale, prior_guidance_scale)[0]
        options = {"cfg_scale": scale, "generator": generator, **prior_options}
        return self._write(condition, batch, None, None, prior_token_ids, num_tokens, **options)[0]

    def _draw(self, token_ids: Tensor, output_type: str, generator: GeneratorArgument, **options: Any) -> Any:
        if output_type == "latent":
            return token_ids
        if "generator" in inspect.signature(type(self.image_tokenizer)._decode).parameters:
            options["generator"] = generator
        sample = self.image_tokenizer.decode_tokens(token_ids, **options).sample
        return self.image_processor.postprocess(sample, output_type)

    # ------------------------------------------------------------------ the call

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        class_labels: int | list[int] | Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        num_images_per_prompt: int = 1,
        best_of: int | None = None,
        rank_by: RankBy = "log_probs",
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        guidance_scale: Any = None,
        prior_guidance_scale: Any = None,
        generator: GeneratorArgument = None,
        output_type: str = "pil",
        return_dict: bool = True,
        decode_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        **prior_options: Any,
    ) -> AutoregressivePipelineOutput | tuple[Any, Tensor]:
        """
        Draws pictures.

        Args:
            prompt: one text or several.
            class_labels: one label or several, for priors on classes.
            negative_prompt: what to stay away from; nothing where None.
            prompt_embeds, prompt_attention_mask: features `(B, T, D)` and their mask in place of a prompt.
            negative_prompt_embeds, negative_prompt_attention_mask: the same in place of a negative prompt.
            num_images_per_prompt: pictures per prompt.
            best_of: candidates per prompt, of which the `num_images_per_prompt` best are returned, best first.
            rank_by: "log_probs" (of the prior, before anything is drawn), or a function of (pictures, their prompts or
                labels or None) that returns a score each, higher is better.
            prior_token_ids: ids. Alone they are drawn as they are; with a condition they are a prefix that the prior
                completes, one row per picture.
            num_tokens: how many tokens to write; all where None. Fewer can be drawn where tokens are coarse to fine.
            guidance_scale: guidance of the prior, or a function of (step, number of steps); 1 means none. Where the
                image tokenizer's decoder is guided, it is the decoder's.
            prior_guidance_scale: guidance of the prior in any case.
            generator: random generator, or one per picture (candidates included).
            output_type: "pil", "np", "pt", or "latent" for the ids.
            return_dict: whether to return an [`AutoregressivePipelineOutput`], else `(images, prior_token_ids)`.
            decode_kwargs: options of the image tokenizer's `decode`, such as `image_size`.
            callback_on_step_end: `f(pipeline, step, timestep, {"token_ids": ...})` after each step, with all ids.
            callback_on_step_end_tensor_inputs: names of what the callback gets.
            prior_options: of the prior's `generate`: temperature, top_k, top_p, min_p, cfg_interval, cache, ...

        Settings that are None are as published with the checkpoint.

        Raises:
            ValueError: for a bad prompt, wrong numbers, ids that do not fit, and options that the prior does not have.
        """
        self.check_output_type(output_type)
        self._check_prior_options(prior_options)
        ranking = Ranking(best_of, num_images_per_prompt, rank_by)
        scale, decode_options = self._guidance(guidance_scale, prior_guidance_scale)
        decode_options |= decode_kwargs or {}
        texts = (prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)
        condition, batch = self._conditions(prompt, class_labels, negative_prompt, *texts, ranking.candidates)
        if not batch and prior_token_ids is None:
            raise ValueError("Give prompt, class_labels or prompt_embeds, or prior_token_ids to draw.")
        self._check_drawable(num_tokens, output_type)
        if batch:
            options = {"cfg_scale": scale, "generator": generator, **prior_options}
            callbacks = (callback_on_step_end, callback_on_step_end_tensor_inputs)
            token_ids, log_probs = self._write(condition, batch, *callbacks, prior_token_ids, num_tokens, **options)
        else:
            token_ids, log_probs = prior_token_ids[:, :num_tokens], None
        if ranking.by_tokens:
            kept = ranking.best(log_probs)
            token_ids, log_probs = token_ids[kept], log_probs[kept]
            generator = [generator[i] for i in kept.tolist()] if isinstance(generator, (list, tuple)) else generator
        images = self._draw(token_ids, output_type, generator, **decode_options)
        if ranking.by_pictures:
            kept = ranking.best_pictures(images, self._asked(prompt, class_labels))
            images, token_ids = rows_of(images, kept), token_ids[kept.to(token_ids.device)]
            log_probs = None if log_probs is None else log_probs[kept.to(log_probs.device)]
        self.maybe_free_model_hooks()
        return AutoregressivePipelineOutput(images, token_ids, log_probs) if return_dict else (images, token_ids)

    @staticmethod
    def _asked(prompt: Any, class_labels: Any) -> list[Any] | None:
        """The prompts or labels."""
        if prompt is not None:
            return check_prompts(prompt)
        if class_labels is None:
            return None
        return [class_labels] if isinstance(class_labels, int) else list(torch.as_tensor(class_labels).tolist())

    def _check_drawable(self, num_tokens: int | None, output_type: str) -> None:
        """Raises where fewer tokens than all are asked for, and the image tokenizer cannot draw them."""
        if num_tokens is None or output_type == "latent" or num_tokens == self.prior.num_tokens:
            return
        if self.image_tokenizer.latent_layout == "sequence":
            self.image_tokenizer._check_num_tokens(num_tokens)
        else:
            raise ValueError(
                f"num_tokens={num_tokens!r}: a grid is drawn from all {self.prior.num_tokens} tokens. "
                'output_type="latent" gives ids.'
            )

    # ------------------------------------------------------------------ streaming

    def stream(
        self,
        prompt: str | list[str] | None = None,
        *,
        class_labels: int | list[int] | Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        num_tokens: int | None = None,
        guidance_scale: Any = None,
        generator: GeneratorArgument = None,
        **prior_options: Any,
    ) -> Iterator[Tensor]:
        """
        Yields all ids so far, `(B, n)`, after each step of the prior; arguments and errors as for `__call__`.
        """
        self._check_prior_options(prior_options)
        with torch.no_grad():
            condition, batch = self._conditions(prompt, class_labels, negative_prompt)
        if not batch:
            raise ValueError("Give prompt or class_labels.")
        self.check_generators(generator, batch)
        scale = self._guidance(guidance_scale, None)[0]
        steps = self.prior.stream(
            **condition, num_tokens=num_tokens, cfg_scale=scale, generator=generator, **prior_options
        )
        return _accumulate(steps)


def _accumulate(steps: Iterator[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    written: list[Tensor] = []
    for ids, _ in steps:
        written.append(ids)
        yield torch.cat(written, 1)


def _named(embeds: Tensor, mask: Tensor | None, count: int) -> dict[str, Tensor]:
    named = {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}
    return repeat_rows({name: value for name, value in named.items() if value is not None}, count)


def processor_of(image_tokenizer: PreTrainedImageTokenizer) -> ImageTokenizerProcessor:
    """A processor for a tokenizer's size and pixel space."""
    config = image_tokenizer.config
    if config.pixel_range is not None:
        return ImageTokenizerProcessor.for_size(config.image_size, tuple(config.pixel_range))
    processor = ImageTokenizerProcessor.for_size(config.image_size)
    processor.image_mean, processor.image_std = list(config.image_mean), list(config.image_std)
    return processor

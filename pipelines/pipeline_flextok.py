"""Pictures of a text or a class: a prior writes FlexTok ids, coarse to fine, and a flow draws any prefix of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.ar_prior_utils import PreTrainedARPrior
from ..modeling.flextok.modeling_flextok import FlexTokModel
from ..modeling.flextok.modeling_flextok_encoder import FlexTokEncoder
from ..modeling.flextok.modeling_flextok_linear import FlexTokLinearEncoder
from ..modeling.flextok.modeling_flextok_transformer import FlexTokTransformer
from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.layers.flow import GuidanceScale, check_flow_scheduler, check_steps
from ..modeling.layers.sampling import draw_normal
from ..modeling.layers.vae import vae_decode, vae_factor
from ..modeling.prior_utils import PreTrainedImagePrior
from .pipeline_utils import LOADERS, GeneratorArgument, ImageTokenPipeline, check_codebooks
from .prompting import Conditions, PromptMixin, Ranking, check_prompts, rows_of

CONDITIONS = (
    "class_labels",
    "negative_prompt",
    "prompt_embeds",
    "prompt_attention_mask",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
)


@dataclass
class FlexTokPipelineOutput(ImagePipelineOutput):
    """
    What [`FlexTokPipeline`] returns.

    Args:
        images: as `output_type` says.
        prior_token_ids: the ids that were drawn, int64 `(B, N)`.
        log_probs: log-probability of each sequence under the prior, `(B,)`; None where nothing was written.
    """

    prior_token_ids: Tensor | None = None
    log_probs: Tensor | None = None


class FlexTokPipeline(PromptMixin, ImageTokenPipeline):
    """
    Text-to-image or class-conditional generation with FlexTok.

    Args:
        prior: writes ids from a text or a class ([`FlexARPrior`]), or a masked one of texts ([`MaskGenPrior`]).
        transformer: the flow decoder, which also knows what ids mean.
        vae: turns its latents into pixels.
        scheduler: Euler steps; equal ones where None.
        tokenizer, text_encoder: of prompts; None for priors on classes.
        image_encoder: the other half of the tokenizer. The pipeline does not use it; it is kept so that
            `AutoImageTokenizer.from_pretrained(folder)` can encode.
        image_processor: makes pictures of pixels.

    Raises:
        ValueError: where prior and decoder have different codebooks, or the scheduler is of another kind.
    """

    original_component = "prior"
    model_cpu_offload_seq = "image_encoder->text_encoder->prior->transformer->vae"
    _optional_components = ["scheduler", "tokenizer", "text_encoder", "image_encoder", "image_processor"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        prior: PreTrainedImagePrior,
        transformer: FlexTokTransformer,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
        image_encoder: FlexTokEncoder | FlexTokLinearEncoder | None = None,
        image_processor: ImageTokenizerProcessor | None = None,
    ) -> None:
        super().__init__()
        check_codebooks(prior, transformer)
        if prior.num_tokens > transformer.num_tokens:
            raise ValueError(f"The prior writes {prior.num_tokens} tokens, the decoder takes {transformer.num_tokens}.")
        scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler
        check_flow_scheduler(scheduler)
        if (tokenizer is None) != (text_encoder is None):
            raise ValueError("tokenizer and text_encoder belong together: give both or none.")
        if image_processor is None:
            side = transformer.config.sample_size * vae_factor(vae)
            image_processor = ImageTokenizerProcessor.for_size(side, (-1.0, 1.0))
        self.register_modules(
            prior=prior,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            image_encoder=image_encoder,
            image_processor=image_processor,
        )

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls, source: str, *, image_tokenizer: str | FlexTokModel | None = None, **kwargs: Any
    ) -> "FlexTokPipeline":
        """
        Loads a pipeline's folder, or the original checkpoint of a prior.

        Args:
            source: folder or id.
            image_tokenizer: a FlexTok tokenizer, or its folder or id (the authors' too), whose parts to take.
            kwargs: components by name, and what diffusers takes.
        """
        if image_tokenizer is not None:
            if isinstance(image_tokenizer, str):
                image_tokenizer = LOADERS["image_tokenizer"](image_tokenizer)
            kwargs = {**cls.parts_of(image_tokenizer), **kwargs}
        return super().from_pretrained(source, **kwargs)

    @classmethod
    def from_image_tokenizer(
        cls, image_tokenizer: FlexTokModel, prior: PreTrainedImagePrior, **components: Any
    ) -> "FlexTokPipeline":
        """A pipeline of a tokenizer and a prior; weights are shared."""
        return cls(prior=prior, **{**cls.parts_of(image_tokenizer), **components})

    @staticmethod
    def parts_of(image_tokenizer: FlexTokModel) -> dict[str, Any]:
        """
        The components that a tokenizer gives a pipeline.

        Raises:
            ValueError: for another kind of tokenizer.
        """
        if not isinstance(image_tokenizer, FlexTokModel):
            raise ValueError(f"image_tokenizer must be a FlexTokModel, got {type(image_tokenizer).__name__}.")
        return {
            "transformer": image_tokenizer.transformer,
            "vae": image_tokenizer.vae,
            "image_encoder": image_tokenizer.encoder,
        }

    @classmethod
    def load_image_tokenizer(cls, source: str, index: dict[str, Any], **kwargs: Any) -> FlexTokModel:
        """
        The image tokenizer inside a pipeline's folder, assembled from its parts.

        Args:
            source: folder or id.
            index: contents of its model_index.json.
            kwargs: `dtype`, `attn_implementation`, `variant`, download arguments.
        """
        implementation = kwargs.pop("attn_implementation", None)
        kwargs.pop("subfolder", None)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        encoder = (index.get("image_encoder") or [None, None])[1]
        classes: dict[str, Any] = {"transformer": FlexTokTransformer, "vae": AutoencoderKL}
        if encoder is not None:
            classes["image_encoder"] = FlexTokLinearEncoder if encoder == "FlexTokLinearEncoder" else FlexTokEncoder
        parts = {name: part.from_pretrained(source, subfolder=name, **kwargs) for name, part in classes.items()}
        model = FlexTokModel.from_parts(**parts)
        if implementation is not None:
            model.set_attn_implementation(implementation)
        return model

    # ------------------------------------------------------------------ checks

    def _check_num_tokens(self, num_tokens: int | None, most: int) -> int:
        if num_tokens is None:
            return most
        ordered = self.transformer.config.nested_dropout
        if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or not 1 <= num_tokens <= most:
            raise ValueError(f"num_tokens must be a whole number in [1, {most}], got {num_tokens!r}.")
        if not ordered and num_tokens != self.transformer.num_tokens:
            raise ValueError(f"This decoder needs all {self.transformer.num_tokens} tokens: its tokens have no order.")
        return num_tokens

    def _check_token_ids(self, token_ids: Any) -> Tensor:
        if not isinstance(token_ids, Tensor) or token_ids.is_floating_point() or token_ids.ndim != 2:
            raise ValueError("prior_token_ids must be an int64 tensor (B, N).")
        low, high = int(token_ids.min()), int(token_ids.max())
        most = self.transformer.num_tokens
        if low < 0 or high >= self.transformer.codebook_size or not 1 <= token_ids.shape[1] <= most:
            raise ValueError(
                f"prior_token_ids must be 1 to {most} ids in [0, {self.transformer.codebook_size - 1}], got "
                f"{token_ids.shape[1]} ids from {low} to {high}."
            )
        return token_ids.long().to(self._execution_device)

    # ------------------------------------------------------------------ the two halves

    def _write(
        self,
        conditions: Conditions,
        prefix: Tensor | None,
        num_tokens: int,
        prior_guidance_scale: Any,
        generator: GeneratorArgument,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Ids `(B, num_tokens)` and the log-probabilities of those that are new."""
        if prefix is not None and len(prefix) != conditions.batch:
            raise ValueError(f"prior_token_ids has {len(prefix)} rows for {conditions.batch} pictures.")
        if prefix is not None and prefix.shape[1] > num_tokens:
            raise ValueError(f"prior_token_ids has {prefix.shape[1]} tokens, more than num_tokens={num_tokens}.")
        if prefix is not None and prefix.shape[1] == num_tokens:
            return prefix, None
        options = {**options, "cfg_scale": prior_guidance_scale, "generator": generator}
        if isinstance(self.prior, PreTrainedARPrior):
            options["num_tokens"] = num_tokens
        elif prefix is not None:  # masked priors write all their tokens at once
            prefix = pad(prefix, (0, self.prior.num_tokens - prefix.shape[1]), value=self.prior.mask_token_id)
        output = self.prior.generate(**conditions.prior, prior_token_ids=prefix, **options)
        return output.token_ids[:, :num_tokens], output.log_probs

    @torch.no_grad()
    def generate_prior_tokens(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        prior_guidance_scale: Any = None,
        generator: GeneratorArgument = None,
        **options: Any,
    ) -> Tensor:
        """
        The first half of a call: ids `(B, num_tokens)`.

        Arguments and errors are those of `__call__`; `options` may hold its `class_labels`, `negative_prompt`,
        features in place of prompts, and options of the prior.
        """
        conditions, options = self._split(options, Ranking(None, num_images_per_prompt), prompt=prompt)
        self.check_prior_options(prior_guidance_scale, options)
        if conditions is None:
            raise ValueError("Give prompt, class_labels or prompt_embeds.")
        self.check_generators(generator, conditions.batch)
        prefix = None if prior_token_ids is None else self._check_token_ids(prior_token_ids)
        count = self._check_num_tokens(num_tokens, self.prior.num_tokens)
        return self._write(conditions, prefix, count, prior_guidance_scale, generator, options)[0]

    def _split(
        self, options: dict[str, Any], ranking: Ranking, **conditions: Any
    ) -> tuple[Conditions | None, dict[str, Any]]:
        """What to draw, and the options that are left: those of the prior."""
        named = {name: options[name] for name in CONDITIONS if name in options}
        left = {name: value for name, value in options.items() if name not in CONDITIONS}
        return self.make_conditions(ranking.candidates, **named, **conditions), left

    def prepare_noise(self, batch: int, generator: GeneratorArgument = None) -> Tensor:
        """Standard normal noise `(B, C, h, w)` to start from."""
        config = self.transformer.config
        shape = (batch, config.in_channels, config.sample_size, config.sample_size)
        return draw_normal(shape, generator, self._execution_device)

    def draw_tokens(
        self,
        token_ids: Tensor,
        noise: Tensor,
        *,
        guidance_scale: GuidanceScale | None = None,
        guidance: str | None = None,
        num_inference_steps: int | None = None,
        conditions: Conditions | None = None,
        on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """
        The second half of a call: scaled VAE latents `(B, C, h, w)` of ids `(B, k)`, any prefix.

        Args:
            token_ids: int64 `(B, k)`.
            noise: see `prepare_noise`.
            guidance_scale, guidance, num_inference_steps: as in `__call__`.
            conditions: of `make_conditions`, for decoders that see a text.
            on_step: called with (step, timestep, latents).
        """
        sees_text = conditions is not None and self.transformer.has_text
        return self.transformer.sample_latents(
            noise,
            self.transformer.ids_to_latents(token_ids),
            num_inference_steps=num_inference_steps,
            guidance=self.transformer.make_guidance(guidance_scale, guidance),
            scheduler=self.scheduler,
            text=conditions.text if sees_text else None,
            negative_text=conditions.negative_text if sees_text else None,
            on_step=on_step,
        )

    def _pictures(self, latents: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        return self.image_processor.postprocess(vae_decode(self.vae, latents).float(), output_type)

    def _draw_and_report(
        self, ids: Tensor, noise: Tensor, callback: Callable | None, names: list[str] | None, **draw: Any
    ) -> Tensor:
        """`draw_tokens` with a progress bar and the caller's callback."""
        unknown = [name for name in names or [] if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs {unknown}; there are {self._callback_tensor_inputs}.")
        steps = draw["num_inference_steps"] or self.transformer.config.num_inference_steps
        with self.progress_bar(total=steps) as bar:

            def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
                bar.update()
                if callback is None:
                    return None
                return (callback(self, step, timestep, {"latents": latents}) or {}).get("latents")

            return self.draw_tokens(ids, noise, on_step=on_step, **draw)

    # ------------------------------------------------------------------ the call

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        class_labels: int | list[int] | Tensor | None = None,
        num_images_per_prompt: int = 1,
        best_of: int | None = None,
        rank_by: str | Callable[[list[Any], list[str] | None], list[float]] = "log_probs",
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        prior_guidance_scale: Any = None,
        guidance_scale: GuidanceScale | None = None,
        guidance: str | None = None,
        num_inference_steps: int | None = None,
        generator: GeneratorArgument = None,
        noise: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        **options: Any,
    ) -> FlexTokPipelineOutput | tuple[Any, Tensor]:
        """
        Draws pictures.

        Args:
            prompt: one text or several.
            class_labels: one label or several, for priors on classes.
            num_images_per_prompt: pictures per prompt.
            best_of: candidates per prompt, of which the `num_images_per_prompt` best are returned.
            rank_by: "log_probs" (of the prior, before anything is drawn), or a function of (pictures, their prompts)
                that returns a score each, higher is better.
            prior_token_ids: ids `(B, k)`. Alone they are drawn as they are; with a prompt they are a prefix that the
                prior completes.
            num_tokens: how many tokens to write and draw, 1 is coarsest; all where None.
            prior_guidance_scale: guidance of the prior, or a function of (step, number of steps).
            guidance_scale: guidance of the decoder, or a function of the time t in (0, 1]; 1 means none.
            guidance: "apg" or "cfg".
            num_inference_steps: Euler steps of the decoder.
            generator: random generator, or one per picture (candidates included).
            noise: noise `(B, C, h, w)` to start from; see `prepare_noise`.
            output_type: "pil", "np", "pt" or "latent" (scaled VAE latents).
            return_dict: whether to return a [`FlexTokPipelineOutput`], else `(images, prior_token_ids)`.
            callback_on_step_end: `f(pipeline, step, timestep, {"latents": ...})` after each step of the decoder; may
                return other latents.
            callback_on_step_end_tensor_inputs: names of what the callback gets.
            options: `negative_prompt` (what to stay away from); features in place of prompts: `prompt_embeds`,
                `prompt_attention_mask`, `pooled_prompt_embeds`, `negative_prompt_embeds`,
                `negative_prompt_attention_mask`; and options of the prior's `generate`: `temperature`, `top_k`,
                `top_p`, `min_p`, `cfg_interval`, ...

        Settings that are None are as published with the checkpoint.

        Raises:
            ValueError: for a bad prompt, wrong numbers, ids that do not fit, and options that the prior does not have.
        """
        ranking = Ranking(best_of, num_images_per_prompt, rank_by)
        self._check_drawing(output_type, num_inference_steps, guidance_scale, guidance)
        conditions, options = self._split(options, ranking, prompt=prompt, class_labels=class_labels)
        self.check_prior_options(prior_guidance_scale, options)
        given = None if prior_token_ids is None else self._check_token_ids(prior_token_ids)
        if conditions is None and given is None:
            raise ValueError("Give prompt, class_labels or prompt_embeds, or prior_token_ids to draw.")
        self.check_generators(generator, len(given) if conditions is None else conditions.batch)
        ids, log_probs = self._ids(conditions, given, num_tokens, prior_guidance_scale, generator, options)
        if ranking.by_tokens:
            kept = ranking.best(log_probs)
            ids, log_probs, conditions = ids[kept], log_probs[kept], conditions.rows(kept)
            generator = [generator[i] for i in kept.tolist()] if isinstance(generator, list) else generator
        noise = self._check_noise(noise, len(ids), generator)
        draw = {"guidance_scale": guidance_scale, "guidance": guidance, "num_inference_steps": num_inference_steps}
        watch = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        latents = self._draw_and_report(ids, noise, *watch, conditions=conditions, **draw)
        images = self._pictures(latents, output_type)
        if ranking.by_pictures:
            kept = ranking.best_pictures(images, None if prompt is None else check_prompts(prompt))
            images = rows_of(images, kept)
            ids, log_probs = ids[kept], None if log_probs is None else log_probs[kept]
        self.maybe_free_model_hooks()
        return FlexTokPipelineOutput(images, ids, log_probs) if return_dict else (images, ids)

    def _check_drawing(
        self, output_type: str, num_inference_steps: int | None, guidance_scale: Any, guidance: str | None
    ) -> None:
        self.check_output_type(output_type)
        if num_inference_steps is not None:
            check_steps(num_inference_steps)
        self.transformer.make_guidance(guidance_scale, guidance).scales([1.0])

    def _ids(
        self,
        conditions: Conditions | None,
        given: Tensor | None,
        num_tokens: int | None,
        prior_guidance_scale: Any,
        generator: GeneratorArgument,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        if conditions is None:
            return given[:, : self._check_num_tokens(num_tokens, given.shape[1])], None
        count = self._check_num_tokens(num_tokens, self.prior.num_tokens)
        return self._write(conditions, given, count, prior_guidance_scale, generator, options)

    def _check_noise(self, noise: Tensor | None, batch: int, generator: GeneratorArgument) -> Tensor:
        if noise is None:
            return self.prepare_noise(batch, generator)
        config = self.transformer.config
        shape = (batch, config.in_channels, config.sample_size, config.sample_size)
        if tuple(noise.shape) != shape:
            raise ValueError(f"noise must have shape {shape}, got {tuple(noise.shape)}.")
        return noise.to(self._execution_device)

    # ------------------------------------------------------------------ streaming

    def stream(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_tokens: int | None = None,
        sizes: list[int] | None = None,
        prior_guidance_scale: Any = None,
        guidance_scale: GuidanceScale | None = None,
        guidance: str | None = None,
        num_inference_steps: int | None = None,
        generator: GeneratorArgument = None,
        output_type: str = "pil",
        **options: Any,
    ) -> Iterator[FlexTokPipelineOutput]:
        """
        Draws the picture again and again while the prior is still writing: from 1, 2, 4, 8, ... tokens.

        All pictures start from the same noise. Arguments as in `__call__`, and:

        Args:
            sizes: numbers of tokens to stop at, ascending; the powers of two below `num_tokens`, and `num_tokens`.

        Yields:
            [`FlexTokPipelineOutput`] whose `prior_token_ids` are the ids so far.

        Raises:
            ValueError: as `__call__`, at once and not at the first picture.
        """
        self._check_drawing(output_type, num_inference_steps, guidance_scale, guidance)
        if not self.transformer.config.nested_dropout:
            raise ValueError("This decoder needs all its tokens: there is nothing to see before the last one.")
        sizes = self._check_sizes(sizes, self._check_num_tokens(num_tokens, self.prior.num_tokens))
        with torch.no_grad():
            conditions, options = self._split(options, Ranking(None, 1), prompt=prompt)
        self.check_prior_options(prior_guidance_scale, options)
        if conditions is None:
            raise ValueError("Give prompt, class_labels or prompt_embeds.")
        self.check_generators(generator, conditions.batch)
        # the noise is drawn by generators of its own, so that the ids are those of `generate_prior_tokens`
        noise = self.prepare_noise(conditions.batch, _forked(generator))
        draw = {"guidance_scale": guidance_scale, "guidance": guidance, "num_inference_steps": num_inference_steps}
        write = {"prior_guidance_scale": prior_guidance_scale, "generator": generator, "options": options}
        return self._stream(conditions, sizes, noise, write, draw, output_type)

    @staticmethod
    def _check_sizes(sizes: list[int] | None, most: int) -> list[int]:
        if sizes is None:
            return [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
        if not sizes or any(not isinstance(size, int) or not 1 <= size <= most for size in sizes):
            raise ValueError(f"sizes must be whole numbers in [1, {most}], got {sizes!r}.")
        return sorted(set(sizes))

    def _stream(
        self,
        conditions: Conditions,
        sizes: list[int],
        noise: Tensor,
        write: dict[str, Any],
        draw: dict[str, Any],
        output_type: str,
    ) -> Iterator[FlexTokPipelineOutput]:
        ids, log_probs = None, None
        for size in sizes:
            with torch.no_grad():  # not around the yield: it must not leak into the caller
                # the prior goes on from its ids: reading them again costs one forward, and offloading stays right
                ids, new = self._write(conditions, ids, size, **write)
                log_probs = new if log_probs is None or new is None else log_probs + new
                images = self._pictures(self.draw_tokens(ids, noise, conditions=conditions, **draw), output_type)
            yield FlexTokPipelineOutput(images, ids, log_probs)
        self.maybe_free_model_hooks()


def _forked(generator: GeneratorArgument) -> GeneratorArgument:
    """Generators that start from the seeds of the given ones and leave those alone."""
    if generator is None:
        return None
    if isinstance(generator, (list, tuple)):
        return [_forked(one) for one in generator]
    return torch.Generator(generator.device).manual_seed(generator.initial_seed() + 1)

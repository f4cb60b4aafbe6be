"""Pictures of a class by masked generation: a masked prior writes ids, an image tokenizer draws them."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.maskgit.modeling_maskgit import MaskGitPrior
from ..modeling.modeling_utils import PreTrainedImageTokenizer
from .pipeline_utils import GeneratorArgument, ImageTokenPipeline, check_codebooks
from .schedulers.scheduling_maskgit import MaskGitScheduler


class MaskGitPipeline(ImageTokenPipeline):
    """
    Class-conditional generation with a masked prior (TiTok, One-D-Piece).

    Args:
        image_tokenizer: draws ids.
        prior: writes ids.
        scheduler: the sampler's settings; the prior's published ones where None.
        image_processor: makes pictures; one for the tokenizer's pixel range where None.
    """

    original_component = "prior"
    model_cpu_offload_seq = "prior->image_tokenizer"
    _optional_components = ["scheduler", "image_processor"]
    _callback_tensor_inputs = ["token_ids"]

    def __init__(
        self,
        image_tokenizer: PreTrainedImageTokenizer,
        prior: MaskGitPrior,
        scheduler: MaskGitScheduler | None = None,
        image_processor: ImageTokenizerProcessor | None = None,
    ) -> None:
        super().__init__()
        check_codebooks(prior, image_tokenizer)
        if prior.num_tokens not in image_tokenizer.valid_num_tokens:
            raise ValueError(
                f"The prior writes {prior.num_tokens} tokens, the image tokenizer has {image_tokenizer.num_tokens}."
            )
        if scheduler is None:
            scheduler = MaskGitScheduler(**vars(prior.sampler()), mask_token_id=prior.mask_token_id)
        if not isinstance(scheduler, MaskGitScheduler):
            raise ValueError(f"scheduler must be a MaskGitScheduler, got {type(scheduler).__name__}.")
        if image_processor is None:
            image_processor = ImageTokenizerProcessor.for_config(image_tokenizer.config)
        self.register_modules(
            image_tokenizer=image_tokenizer, prior=prior, scheduler=scheduler, image_processor=image_processor
        )

    @torch.no_grad()
    def generate_prior_tokens(
        self,
        class_labels: int | list[int] | Tensor,
        *,
        num_images_per_prompt: int = 1,
        prior_token_ids: Tensor | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        choice_temperature: float | None = None,
        generator: GeneratorArgument = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Tensor:
        """The first half of a call: ids `(B, N)` for the labels; arguments as in `__call__`."""
        labels = self.prior.check_class_labels(class_labels).repeat_interleave(num_images_per_prompt)
        self.check_generators(generator, len(labels))
        sampler = self.scheduler.sampler(
            cfg_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            choice_temperature=choice_temperature,
        )
        names = callback_on_step_end_tensor_inputs or self._callback_tensor_inputs
        with self.progress_bar(total=sampler.num_inference_steps) as bar:

            def on_step(step: int, ids: Tensor) -> Tensor | None:
                bar.update()
                return self.run_callback(callback_on_step_end, names, step, {"token_ids": ids}).get("token_ids")

            output = self.prior.generate(
                labels, prior_token_ids=prior_token_ids, generator=generator, sampler=sampler, callback=on_step
            )
        return output.token_ids

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | Tensor | None = None,
        *,
        num_images_per_prompt: int = 1,
        prior_token_ids: Tensor | None = None,
        num_tokens: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        choice_temperature: float | None = None,
        generator: GeneratorArgument = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """
        Draws pictures.

        Args:
            class_labels: one label or several.
            num_images_per_prompt: pictures per label.
            prior_token_ids: ids `(B, N)` to draw; without labels nothing is generated, with labels their open
                positions (`prior.mask_token_id`) are filled.
            num_tokens: draw only the first tokens of a prefix-ordered tokenizer.
            guidance_scale, num_inference_steps, choice_temperature: as published where None.
            generator: random generator, or one per picture.
            output_type: "pil", "np", "pt", or "latent" for the ids.
            return_dict: whether to return an `ImagePipelineOutput`.
            callback_on_step_end: `f(pipeline, step, timestep, {"token_ids": ...})`, may return other ids.
            callback_on_step_end_tensor_inputs: names of what the callback gets.
        """
        self.check_output_type(output_type)
        if class_labels is None and prior_token_ids is None:
            raise ValueError("Give class_labels, or prior_token_ids to draw.")
        token_ids = prior_token_ids
        if class_labels is not None:
            token_ids = self.generate_prior_tokens(
                class_labels,
                num_images_per_prompt=num_images_per_prompt,
                prior_token_ids=prior_token_ids,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                choice_temperature=choice_temperature,
                generator=generator,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
        images = self._draw(token_ids, num_tokens, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _draw(self, token_ids: Tensor, num_tokens: int | None, output_type: str) -> Any:
        if num_tokens is not None:
            self.image_tokenizer._check_num_tokens(num_tokens)
            token_ids = token_ids[:, :num_tokens]
        if output_type == "latent":
            return token_ids
        sample = self.image_tokenizer.decode_tokens(token_ids).sample
        return self.image_processor.postprocess(sample, output_type)

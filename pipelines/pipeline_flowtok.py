"""Pictures of a text by one flow: FlowTok turns the text's tokens into the image's."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.flowtok.modeling_flowtok import FlowTiTokModel
from ..modeling.flowtok.modeling_flowtok_transformer import FlowTokTransformer
from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.layers.flow import check_flow_scheduler
from ..modeling.layers.sampling import draw_normal
from ..modeling.layers.text import ClipText
from .clip_prompting import ClipPromptMixin, check_text_aware, draw_text_aware
from .pipeline_utils import GeneratorArgument, ImageTokenPipeline


class FlowTokPipeline(ClipPromptMixin, ImageTokenPipeline):
    """
    Text-to-image generation with FlowTok.

    Args:
        image_tokenizer: FlowTiTok.
        transformer: the flow, with its text VAE.
        scheduler: diffusers' Euler scheduler; each run gives it the authors' two time grids.
        text_encoder: `CLIPTextModel` (the published checkpoints: openai/clip-vit-large-patch14-336).
        tokenizer: of the same.
        image_processor: makes pictures; one for the tokenizer's pixel range where None.

    Raises:
        ValueError: where flow and tokenizer do not belong together, or the scheduler is of another kind.
    """

    model_cpu_offload_seq = "text_encoder->transformer->image_tokenizer"
    _optional_components = ["scheduler", "text_encoder", "tokenizer", "image_processor"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        image_tokenizer: FlowTiTokModel,
        transformer: FlowTokTransformer,
        scheduler: FlowMatchEulerDiscreteScheduler | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: ImageTokenizerProcessor | None = None,
    ) -> None:
        super().__init__()
        check_text_aware(image_tokenizer)
        shape = (transformer.config.num_tokens, transformer.config.token_size)
        if image_tokenizer.is_discrete or shape != (image_tokenizer.num_tokens, image_tokenizer.latent_dim):
            raise ValueError(f"The flow makes {shape[0]} tokens of width {shape[1]}: the image tokenizer has others.")
        scheduler = FlowMatchEulerDiscreteScheduler() if scheduler is None else scheduler
        check_flow_scheduler(scheduler)
        if image_processor is None:
            image_processor = ImageTokenizerProcessor.for_config(image_tokenizer.config)
        self.register_modules(
            image_tokenizer=image_tokenizer,
            transformer=transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_processor=image_processor,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: GeneratorArgument = None,
        noise: Tensor | None = None,
        prompt_embeds: ClipText | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """
        Draws pictures.

        Args:
            prompt: one text or several.
            num_images_per_prompt: pictures per prompt.
            guidance_scale, num_inference_steps: as published where None; a scale of 1 means no guidance.
            generator: random generator, or one per picture, of the draw of the text's tokens.
            noise: that draw, standard normal `(B, T, C)`.
            prompt_embeds: what `encode_prompt` returns, in place of texts.
            output_type: "pil", "np", "pt", or "latent" for the image tokenizer's latents.
            return_dict: whether to return an `ImagePipelineOutput`.
            callback_on_step_end: `f(pipeline, step, timestep, {"latents": ...})`, may return other latents of the flow.
            callback_on_step_end_tensor_inputs: names of what the callback gets.
        """
        self.check_output_type(output_type)
        text = self.make_text(prompt, prompt_embeds, num_images_per_prompt)
        self.check_generators(generator, len(text.last))
        posterior = self.transformer.encode_text(text.last)
        if noise is None:
            noise = draw_normal(tuple(posterior.mean.shape), generator, posterior.mean.device)
        names = callback_on_step_end_tensor_inputs or self._callback_tensor_inputs
        steps = self.transformer.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        with self.progress_bar(total=steps) as bar:

            def on_step(step: int, t: Tensor, latents: Tensor) -> Tensor | None:
                bar.update()
                return self.run_callback(callback_on_step_end, names, step, {"latents": latents}).get("latents")

            latents = self.transformer.sample_latents(
                posterior.sample(noise=noise),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                scheduler=self.scheduler,
                on_step=on_step,
            )
        latents = self.transformer.denormalize_latents(latents)
        images = latents if output_type == "latent" else draw_text_aware(self, latents, text, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

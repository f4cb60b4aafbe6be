"""Pictures of a text by masked generation: MaskGen writes TA-TiTok's tokens, whose decoder reads the text again."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.layers.text import ClipText
from ..modeling.maskgen.modeling_maskgen_utils import MaskGenBase
from ..modeling.ta_titok.modeling_ta_titok import TaTiTokModel
from .clip_prompting import ClipPromptMixin, check_text_aware, draw_text_aware
from .pipeline_utils import GeneratorArgument, ImageTokenPipeline, check_codebooks


class MaskGenPipeline(ClipPromptMixin, ImageTokenPipeline):
    """
    Text-to-image generation with MaskGen, over ids ([`MaskGenPrior`]) or continuous tokens ([`MaskGenKLPrior`]).

    Args:
        image_tokenizer: TA-TiTok.
        prior: writes its tokens.
        text_encoder: `CLIPTextModelWithProjection` (the published checkpoints: openai/clip-vit-large-patch14-336).
        tokenizer: of the same.
        image_processor: makes pictures; one for the tokenizer's pixel range where None.

    Raises:
        ValueError: where prior and tokenizer do not belong together.
    """

    original_component = "prior"
    model_cpu_offload_seq = "text_encoder->prior->image_tokenizer"
    _optional_components = ["text_encoder", "tokenizer", "image_processor"]
    _callback_tensor_inputs = ["tokens"]

    def __init__(
        self,
        image_tokenizer: TaTiTokModel,
        prior: MaskGenBase,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: ImageTokenizerProcessor | None = None,
    ) -> None:
        super().__init__()
        check_text_aware(image_tokenizer)
        if prior.num_tokens != image_tokenizer.num_tokens:
            raise ValueError(
                f"The prior writes {prior.num_tokens} tokens, the image tokenizer has {image_tokenizer.num_tokens}."
            )
        if hasattr(prior, "latent_dim"):
            if image_tokenizer.is_discrete or prior.latent_dim != image_tokenizer.latent_dim:
                raise ValueError("The prior writes continuous tokens of another kind than the image tokenizer's.")
        else:
            check_codebooks(prior, image_tokenizer)
        if image_processor is None:
            image_processor = ImageTokenizerProcessor.for_config(image_tokenizer.config)
        self.register_modules(
            image_tokenizer=image_tokenizer,
            prior=prior,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_processor=image_processor,
        )

    @torch.no_grad()
    def generate_prior_tokens(
        self,
        text: ClipText,
        negative_text: ClipText | None = None,
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        micro_conditions: float | Tensor | None = None,
        generator: GeneratorArgument = None,
        callback: Callable[[int, Tensor], Tensor | None] | None = None,
        **options: Any,
    ) -> Tensor:
        """
        The first half of a call: ids `(B, N)`, or latents `(B, N, C)` of continuous tokens.

        Args:
            text: of `encode_prompt`, one row per picture.
            negative_text: what guidance starts from; the empty text where None.
            guidance_scale, num_inference_steps, micro_conditions, generator, options: of the prior's `generate`.
            callback: called with (step, tokens) after each step; may return other tokens.
        """
        if negative_text is None:
            negative_text = self.encode_prompt("", allow_empty=True)
        output = self.prior.generate(
            text.penultimate,
            text.pooled,
            negative_encoder_hidden_states=negative_text.penultimate,
            negative_pooled_projections=negative_text.pooled,
            cfg_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            micro_conditions=micro_conditions,
            generator=generator,
            callback=callback,
            **options,
        )
        return output.latents if output.token_ids is None else output.token_ids

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        prior_token_ids: Tensor | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        micro_conditions: float | Tensor | None = None,
        generator: GeneratorArgument = None,
        prompt_embeds: ClipText | None = None,
        negative_prompt_embeds: ClipText | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """
        Draws pictures.

        Args:
            prompt: one text or several.
            negative_prompt: one text to stay away from; the empty text where None.
            num_images_per_prompt: pictures per prompt.
            prior_token_ids: ids `(B, N)` to complete (open positions hold `prior.mask_token_id`).
            guidance_scale, num_inference_steps, micro_conditions: as published where None; the last is the aesthetic
                score.
            generator: random generator, or one per picture.
            prompt_embeds, negative_prompt_embeds: what `encode_prompt` returns, in place of texts.
            output_type: "pil", "np", "pt", or "latent" for the tokens.
            return_dict: whether to return an `ImagePipelineOutput`.
            callback_on_step_end: `f(pipeline, step, timestep, {"tokens": ...})`, may return other tokens.
            callback_on_step_end_tensor_inputs: names of what the callback gets.
            options: further ones of the prior's `generate`.
        """
        self.check_output_type(output_type)
        text = self.make_text(prompt, prompt_embeds, num_images_per_prompt)
        self.check_generators(generator, len(text.last))
        if negative_prompt is not None and negative_prompt_embeds is None:
            negative_prompt_embeds = self.encode_prompt(negative_prompt, allow_empty=True)
        if prior_token_ids is not None:
            options["prior_token_ids"] = prior_token_ids
        names = callback_on_step_end_tensor_inputs or self._callback_tensor_inputs
        with self.progress_bar(total=self.prior.setting("num_inference_steps", num_inference_steps)) as bar:

            def on_step(step: int, tokens: Tensor) -> Tensor | None:
                bar.update()
                return self.run_callback(callback_on_step_end, names, step, {"tokens": tokens}).get("tokens")

            tokens = self.generate_prior_tokens(
                text,
                negative_prompt_embeds,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                micro_conditions=micro_conditions,
                generator=generator,
                callback=on_step,
                **options,
            )
        images = tokens if output_type == "latent" else self._draw(tokens, text, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _draw(self, tokens: Tensor, text: ClipText, output_type: str) -> Any:
        latents = self.image_tokenizer.ids_to_latents(tokens) if self.image_tokenizer.is_discrete else tokens
        return draw_text_aware(self, latents, text, output_type)

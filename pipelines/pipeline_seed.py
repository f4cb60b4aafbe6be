"""Pictures of SEED's ids, or of image embeddings, by Stable unCLIP."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch import Tensor

from ..modeling.layers.guidance import check_scale, combine
from ..modeling.layers.sampling import draw_normal
from ..modeling.layers.unclip import unclip_labels
from ..modeling.modeling_utils import PreTrainedImageTokenizer
from .pipeline_utils import GeneratorArgument, ImageTokenPipeline


class SeedPipeline(ImageTokenPipeline):
    """
    Draws what SEED's tokens say: ids, or the image embedding that they stand for, to pixels.

    The drawing components are those of `stabilityai/stable-diffusion-2-1-unclip`, with the same names.

    Args:
        unet, vae, text_encoder, tokenizer, image_normalizer, scheduler, image_noising_scheduler: of Stable unCLIP.
        image_tokenizer: turns ids (and pictures) into embeddings; not needed for given embeddings.
    """

    model_cpu_offload_seq = "image_tokenizer->text_encoder->image_normalizer->unet->vae"
    _optional_components = ["image_tokenizer", "tokenizer"]
    _callback_tensor_inputs = ["latents"]
    default_steps, default_guidance = 20, 10.0

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: Any,
        text_encoder: Any,
        image_normalizer: StableUnCLIPImageNormalizer,
        scheduler: Any,
        image_noising_scheduler: Any,
        tokenizer: Any = None,
        image_tokenizer: PreTrainedImageTokenizer | None = None,
    ) -> None:
        super().__init__()
        if image_tokenizer is not None and image_tokenizer.decodes_to != "features":
            raise ValueError(f"{type(image_tokenizer).__name__} draws pixels itself: it needs no unCLIP.")
        self.register_modules(
            unet=unet,
            vae=vae,
            text_encoder=text_encoder,
            image_normalizer=image_normalizer,
            scheduler=scheduler,
            image_noising_scheduler=image_noising_scheduler,
            tokenizer=tokenizer,
            image_tokenizer=image_tokenizer,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_factor)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode_prompt(self, prompt_ids: Tensor | None = None) -> Tensor:
        """Text states of the empty prompt `(1, T, D)`, which both halves see; `prompt_ids` are its ids if given."""
        if prompt_ids is None:
            if self.tokenizer is None:
                raise ValueError("Without a text tokenizer give prompt_ids or prompt_embeds of the empty prompt.")
            length = self.tokenizer.model_max_length
            prompt_ids = self.tokenizer("", padding="max_length", max_length=length, return_tensors="pt").input_ids
        return self.text_encoder(prompt_ids.to(self.text_encoder.device)).last_hidden_state

    def predict_noise(self, latents: Tensor, t: Tensor, prompt_embeds: Tensor, labels: Tensor) -> Tensor:
        """The UNet's output `(2B, C, h, w)`, the unconditional half first."""
        both = self.scheduler.scale_model_input(torch.cat([latents, latents]), t)
        states = prompt_embeds.expand(len(both), -1, -1)
        return self.unet(both.to(self.unet.dtype), t, encoder_hidden_states=states, class_labels=labels).sample

    def denoise(
        self,
        latents: Tensor,
        prompt_embeds: Tensor,
        labels: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    ) -> Tensor:
        """Scaled noise to scaled VAE latents `(B, C, h, w)`; the scheduler is a copy of this pipeline's."""
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps, device=latents.device)
        latents = latents * scheduler.init_noise_sigma
        for step, t in enumerate(scheduler.timesteps):
            uncond, cond = self.predict_noise(latents, t, prompt_embeds, labels).float().chunk(2)
            latents = scheduler.step(combine(cond, uncond, guidance_scale), t, latents, return_dict=False)[0]
            changed = on_step(step, t, latents) if on_step is not None else None
            latents = latents if changed is None else changed
        return latents

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents to pixels in about [-1, 1]."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample

    def _embeds(self, images: Any, token_ids: Tensor | None, image_embeds: Tensor | None) -> Tensor:
        if sum(value is not None for value in (images, token_ids, image_embeds)) != 1:
            raise ValueError("Give exactly one of pixel_values, prior_token_ids and image_embeds.")
        if image_embeds is not None:
            return image_embeds.to(self.device)
        if self.image_tokenizer is None:
            raise ValueError("This pipeline has no image_tokenizer: give image_embeds.")
        if token_ids is None:
            token_ids = self.image_tokenizer.encode(images.to(self.image_tokenizer.device)).token_ids
        return self.image_tokenizer.decode_tokens(token_ids.to(self.image_tokenizer.device)).sample

    @torch.no_grad()
    def __call__(
        self,
        prior_token_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        negative_image_embeds: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        noise_level: int = 0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: GeneratorArgument = None,
        noise: dict[str, Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """
        Draws pictures.

        Args:
            prior_token_ids: ids `(B, N)` of the image tokenizer.
            pixel_values: pictures to encode and draw again, as the tokenizer's processor makes them.
            image_embeds: embeddings `(B, D)` to draw.
            negative_image_embeds: embeddings to stay away from; all zeros where None.
            prompt_embeds, prompt_ids: the empty prompt, encoded or as ids; made by `tokenizer` where None.
            noise_level: step of the noising scheduler; 0 still adds a little noise.
            guidance_scale, num_inference_steps: the authors' 10 and 20 where None; a scale of 1 means no guidance.
            generator: random generator, or one per picture.
            noise: draws to use instead: "image_embeds" and "negative_image_embeds" `(B, D)`, "latents" `(B, C, h, w)`.
            output_type: "pil", "np", "pt", or "latent" for the VAE's latents.
            return_dict: whether to return an `ImagePipelineOutput`.
            callback_on_step_end: `f(pipeline, step, timestep, {"latents": ...})`, may return other latents.
            callback_on_step_end_tensor_inputs: names of what the callback gets.
        """
        self.check_output_type(output_type)
        scale = self.default_guidance if guidance_scale is None else guidance_scale
        check_scale("guidance_scale", scale)
        embeds = self._embeds(pixel_values, prior_token_ids, image_embeds).to(self.unet.dtype)
        batch, given = len(embeds), noise or {}
        self.check_generators(generator, batch)
        labels = unclip_labels(
            self.image_normalizer,
            self.image_noising_scheduler,
            embeds,
            given.get("image_embeds", draw_normal(tuple(embeds.shape), generator, embeds.device)),
            noise_level,
            negative_image_embeds,
            given.get("negative_image_embeds", draw_normal(tuple(embeds.shape), generator, embeds.device)),
        )
        prompt = self.encode_prompt(prompt_ids) if prompt_embeds is None else prompt_embeds
        side = self.unet.config.sample_size
        shape = (batch, self.unet.config.in_channels, side, side)
        start = given.get("latents", None)
        start = draw_normal(shape, generator, embeds.device) if start is None else start.to(embeds.device)
        names = callback_on_step_end_tensor_inputs or self._callback_tensor_inputs
        steps = self.default_steps if num_inference_steps is None else num_inference_steps
        with self.progress_bar(total=steps) as bar:

            def on_step(step: int, t: Tensor, latents: Tensor) -> Tensor | None:
                bar.update()
                return self.run_callback(callback_on_step_end, names, step, {"latents": latents}).get("latents")

            latents = self.denoise(start.float(), prompt.to(self.unet.dtype), labels, steps, scale, on_step)
        images = latents if output_type == "latent" else self._draw(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _draw(self, latents: Tensor, output_type: str) -> Any:
        return self.image_processor.postprocess(self.decode_latents(latents).float(), output_type)

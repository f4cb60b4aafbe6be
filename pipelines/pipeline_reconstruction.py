"""Image to tokens to image, with any tokenizer that decodes to pixels."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from ..modeling.image_processing_utils import ImageTokenizerProcessor
from ..modeling.modeling_utils import PreTrainedImageTokenizer
from .pipeline_utils import GeneratorArgument, ImageTokenPipeline


class ImageReconstructionPipeline(ImageTokenPipeline):
    """
    Encodes pictures and draws them again.

    Args:
        image_tokenizer: any image tokenizer that decodes to pixels.
        image_processor: its processor; one for its size and pixel range where None.
    """

    original_component = "image_tokenizer"
    model_cpu_offload_seq = "image_tokenizer"
    _optional_components = ["image_processor"]

    def __init__(
        self, image_tokenizer: PreTrainedImageTokenizer, image_processor: ImageTokenizerProcessor | None = None
    ) -> None:
        super().__init__()
        if image_tokenizer.decodes_to != "pixels":
            raise ValueError(
                f"{type(image_tokenizer).__name__} decodes to {image_tokenizer.decodes_to}, this pipeline needs pixels."
            )
        if image_processor is None:
            image_processor = ImageTokenizerProcessor.for_config(image_tokenizer.config)
        self.register_modules(image_tokenizer=image_tokenizer, image_processor=image_processor)

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        *,
        num_tokens: int | Tensor | None = None,
        generator: GeneratorArgument = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **decode_kwargs: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """
        Encodes and decodes.

        Args:
            images: pictures, as the processor takes them.
            num_tokens: length of the prefix, or one per picture as a LongTensor `(B,)`.
            generator, num_inference_steps, guidance_scale: of stochastic decoders.
            output_type: "pil", "np", "pt", or "latent" for the latents.
            return_dict: whether to return an `ImagePipelineOutput`.
            decode_kwargs: what `decode_conditioning` of the tokenizer names.
        """
        self.check_output_type(output_type)
        tokenizer = self.image_tokenizer
        pixels = self.image_processor(images, return_tensors="pt").pixel_values
        encoded = tokenizer.encode(pixels.to(self._execution_device, tokenizer.dtype), num_tokens)
        options = {"generator": generator, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        result = encoded.latents
        if output_type != "latent":
            given = {**options, **(encoded.decode_kwargs or {}), **decode_kwargs}
            sample = tokenizer.decode(encoded.latents, encoded.token_mask, **given).sample
            result = self.image_processor.postprocess(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

"""How the stored outputs of SEED's tokenizer and decoder are obtained."""

import diffusers
import torch

from hf_vistok.modeling.layers.unclip import unclip_labels
from hf_vistok.pipelines.pipeline_seed import SeedPipeline

from ..harness import Case, Hook


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    encoded = model.encode(inputs["image"])
    decoded = model.decode_tokens(encoded.token_ids)
    results = {
        "vit_features": model.vision_features(inputs["image"]),
        "qformer_output": encoded.features,
        "latent_before_quant": encoded.pre_quant,
        "latent_quantized": model.ids_to_latents(encoded.token_ids),
        "token_ids": encoded.token_ids,
        "vq_loss": encoded.loss,
        "decoded_up": decoded.features,
        "image_embeds": decoded.sample,
        "random_image_embeds": model.decode_tokens(inputs["random_token_ids"]).sample,
        "token_ids_changed": model.encode(inputs["image_changed"]).token_ids,
    }
    if model.config.feature_branch:
        results["recon_s_features"] = model.rebuild_features(encoded.latents)
        results["recon_s_cosine_loss"] = model(inputs["image"]).losses["feature_loss"]
    return results


def diffusion_decoder(case: Case) -> dict:
    config, inputs, call = case.config, case.inputs, case.config["call"]
    schedulers = {
        name: getattr(diffusers, config[name]["_class_name"]).from_config(config[name])
        for name in ("scheduler", "image_noising_scheduler")
    }
    pipe = SeedPipeline(**case.parts, **schedulers)
    pipe.set_progress_bar_config(disable=True)
    labels = unclip_labels(
        pipe.image_normalizer,
        pipe.image_noising_scheduler,
        inputs["image_embeds"],
        inputs["noise_for_image_embeds"],
        call["noise_level"],
        inputs.get("negative_image_embeds"),
        inputs.get("noise_for_negative_image_embeds"),
    )
    prompt = pipe.encode_prompt(inputs["prompt_ids"])
    times = []
    latents = pipe(
        image_embeds=inputs["image_embeds"],
        negative_image_embeds=inputs.get("negative_image_embeds"),
        prompt_embeds=prompt,
        noise_level=call["noise_level"],
        num_inference_steps=call["num_inference_steps"],
        guidance_scale=call["guidance_scale"],
        noise={
            "image_embeds": inputs["noise_for_image_embeds"],
            "negative_image_embeds": inputs.get("noise_for_negative_image_embeds"),
            "latents": inputs["initial_latents"],
        },
        output_type="latent",
    ).images
    scheduler = schedulers["scheduler"]
    scheduler.set_timesteps(call["num_inference_steps"])
    times = scheduler.timesteps
    return {
        "class_labels": labels,
        "prompt_embeds": prompt,
        "timesteps": torch.as_tensor(times),
        "unet_first_out": pipe.predict_noise(
            inputs["initial_latents"] * scheduler.init_noise_sigma, times[0], prompt, labels
        ),
        "final_latents": latents,
        "image": pipe.decode_latents(latents),
    }


HOOKS = {"tokenizer": Hook(tokenizer), "diffusion_decoder": Hook(diffusion_decoder)}

"""How the stored outputs of Send-VAE and of REPA-E's SiT are obtained."""

import torch

from ..harness import Case, Hook
from .latent_flow import limits_of, scale_of


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    encoded = model.encode(inputs["image"])
    dist = encoded.latent_dist
    found = {
        "moments": lambda: model.moments(inputs["image"]),
        "latent_mean": encoded.latents,
        "kl": dist.kl((1, 2, 3)),
        "recon": lambda: model.decode(encoded.latents).sample,
    }
    if "sample_noise" in inputs:
        sampled = dist.sample(noise=inputs["sample_noise"])
        found["latent_sampled"] = sampled
        if "latents_bias" in inputs:
            model.set_latent_statistics(inputs["latents_bias"], 1 / inputs["latents_scale"])
            found["latent_normalized"] = model.normalize_latents(sampled)
    return found


def flow_generator(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    labels, found = inputs["y"], {}
    start = inputs.get("sample_start", inputs.get("noise"))

    def sample(name: str, **settings) -> torch.Tensor:
        # the description of the stochastic sample names no numbers of its own: they are those of the other one
        guide = "ode_sample_cfg" if name.endswith("_cfg") else name
        scale = scale_of(case, name, scale_of(case, guide, 1.0))
        limits = limits_of(case, name) or limits_of(case, guide) or (0.0, 1.0)
        return model.sample_latents(start, labels, guidance_scale=scale, guidance_intervals=[limits], **settings)

    if "latent_raw" in inputs:
        latents = model.normalize_latents(inputs["latent_raw"])
        x, target = model.interpolate(latents, inputs["noise"], inputs["t"])
        out = model(x, inputs["t"], labels)
        found["x_normalized"] = latents
        found["train_model_output"] = out.sample
        found["train_denoising_loss"] = (out.sample - target).square().flatten(1).mean(1)
        found |= {f"align_pred_{k}": value for k, value in enumerate(out.projections)}
        teachers = [inputs[f"align_target_{k}"] for k in range(len(out.projections)) if f"align_target_{k}" in inputs]
        if teachers:
            found["train_proj_loss"] = model.projection_loss(out.projections, teachers).reshape(1)
    found["inference_velocity"] = lambda: model(inputs["noise"], inputs["t"], labels).sample
    steps = {"num_inference_steps": len(inputs["sde_noise"]) + 1} if "sde_noise" in inputs else {}
    found["ode_sample"] = lambda: sample("ode_sample", sampler="euler", **steps)
    found["ode_denormalized"] = lambda: model.denormalize_latents(sample("ode_sample", sampler="euler", **steps))
    found["ode_sample_cfg"] = lambda: sample("ode_sample_cfg", sampler="euler", **steps)
    found["sde_sample_cfg"] = lambda: sample("sde_sample_cfg", sampler="sde", step_noise=inputs["sde_noise"], **steps)
    return found


HOOKS = {"tokenizer": Hook(tokenizer), "flow_generator": Hook(flow_generator)}

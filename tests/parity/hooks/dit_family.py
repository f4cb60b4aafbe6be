"""How the stored outputs of DiT, SiT and LightningDiT are obtained."""

import torch

from ..harness import Case, Hook
from .latent_flow import scale_of, velocity


def diffusion(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    model.set_prediction("epsilon")
    batch, steps = len(inputs["noise"]), len(inputs["ddpm_noise"])
    scale = scale_of(case, "sample_ddpm_cfg", 1.0)
    settings = {"num_inference_steps": steps, "guidance_scale": scale}
    return {
        "eps_and_sigma": velocity(case),
        "timesteps_used": torch.tensor(model.sample_times(steps, "ddpm")[::-1]),
        "sample_ddpm_cfg": model.sample_latents(
            # the original carries both halves of the doubled batch; the first is the guided one
            inputs["noise"],
            inputs["y"],
            step_noise=inputs["ddpm_noise"][:, :batch],
            **settings,
        ),
        "sample_ddim_cfg": model.sample_latents(inputs["noise"], inputs["y"], sampler="ddim", **settings),
    }


def sit(case: Case) -> dict:
    model, start = case.model, (case.inputs["noise"], case.inputs["y"])
    points = len(case.inputs["sde_noise"]) + 1
    return {
        "velocity": velocity(case),
        "sample_ode_euler": model.sample_latents(*start, sampler="euler", num_inference_steps=points, guidance_scale=1),
        "sample_ode_dopri5_cfg": model.sample_latents(
            *start, sampler="dopri5", guidance_scale=scale_of(case, "sample_ode_dopri5_cfg", 1.0)
        ),
        "sample_sde": model.sample_latents(
            *start,
            sampler="sde",
            num_inference_steps=points,
            guidance_scale=1,
            step_noise=case.inputs["sde_noise"],
        ),
    }


def lightning(case: Case) -> dict:
    model, start = case.model, (case.inputs["noise"], case.inputs["y"])
    return {
        "velocity": velocity(case),
        "timesteps": torch.tensor(model.sample_times()),
        "sample": model.sample_latents(*start, guidance_scale=1),
        "sample_cfg": model.sample_latents(*start, guidance_scale=scale_of(case, "sample_cfg", 1.0)),
    }


def flow_generator(case: Case) -> dict:
    if "eps_and_sigma" in case.names:
        return diffusion(case)
    return sit(case) if "sde_noise" in case.inputs else lightning(case)


HOOKS = {"flow_generator": Hook(flow_generator)}

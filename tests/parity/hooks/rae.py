"""How the stored outputs of RAE are obtained."""

import torch

from ..harness import Case, Hook
from .latent_flow import sampled, velocity


def tokenizer(case: Case) -> dict:
    model = case.model
    encoded = model.encode(case.inputs["image"])
    return {
        "encoder_tokens": encoded.features,
        "latent": encoded.latents,
        "recon": lambda: model.decode(encoded.latents).sample,
    }


def flow_generator(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    start, pair = (inputs["noise"], inputs["y"]), model.interpolate(inputs["x_t"], inputs["noise"], inputs["t"])
    return {
        "velocity": velocity(case),
        "timesteps": torch.tensor(model.sample_times()),
        "train_x_t": pair[0],
        "train_target": pair[1],
        "sample": lambda: model.sample_latents(*start, guidance_scale=1),
        "sample_cfg": lambda: sampled(case, "sample_cfg"),
        "sample_autoguidance": lambda: sampled(case, "sample_autoguidance", "autoguidance"),
    }


HOOKS = {"tokenizer": Hook(tokenizer), "flow_generator": Hook(flow_generator)}

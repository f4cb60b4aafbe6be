"""How the stored outputs of RPiAE are obtained."""

import torch

from hf_vistok.modeling.layers.conv_codec import unflatten_grid

from ..harness import Case, Hook
from .latent_flow import sampled, velocity


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    encoded = model.encode(inputs["image"])
    decoded = model.decode(encoded.latents)
    sides = (model.config.grid, model.config.grid)
    outputs = {
        "encoder_map": unflatten_grid(encoded.features, *sides),
        "latent": encoded.latents,
        "decoder_space_map": unflatten_grid(decoded.features, *sides),
        "recon": decoded.sample,
    }
    if encoded.latent_dist is not None:
        outputs |= {
            "moments": model.moments(encoded.features),
            "posterior_std": (0.5 * encoded.latent_dist.logvar).exp(),
            "kl": encoded.latent_dist.kl((1, 2, 3)),
        }
    if "sample_noise" in inputs:
        outputs["latent_sampled"] = model.encode(inputs["image"], noise=inputs["sample_noise"]).latents
    return outputs


def flow_generator(case: Case) -> dict:
    model, start = case.model, (case.inputs["noise"], case.inputs["y"])
    outputs = {
        "velocity": velocity(case),
        "timesteps": torch.tensor(model.sample_times()),
        "sample": lambda: model.sample_latents(*start, guidance_scale=1),
        "sample_autoguidance": lambda: sampled(case, "sample_autoguidance", "autoguidance"),
        "sample_cfg": lambda: sampled(case, "sample_cfg"),
        "sample_cfg_interval": lambda: sampled(case, "sample_cfg_interval"),
    }
    rule, weak = model.make_guidance(kind="autoguidance"), case.parts.get("weak_transformer")
    for name, match in case.matching(r"velocity_autoguidance_t(\d*\.?\d+)"):
        t = float(match[1])
        outputs[name] = model.guided(start[0], t, {"class_labels": start[1]}, rule, weak)
    return outputs


HOOKS = {"tokenizer": Hook(tokenizer), "flow_generator": Hook(flow_generator)}

"""How the stored outputs of UniFlow are obtained."""

import re

from ..harness import Case, Hook
from .latent_flow import described


def decoded(case: Case, latents, noise: str, name: str, steps: int | None = None):
    """A reconstruction; the settings of runs with a schedule of their own stand in their descriptions."""
    text = case.meta["tensors"].get(name, "")
    counted = described(case, name, r"(\d+)\s+(?:linear\s+\w+\s+)?steps")
    if steps is None and counted:
        steps = int(counted[0])
    scale, schedule = described(case, name, r"cfg (\d*\.?\d+)"), re.search(r"pow_\d*\.?\d+", text)
    settings = {"guidance_scale": scale[0] if scale else None, "schedule": schedule[0] if schedule else None}
    return case.model.decode(latents, noise=case.inputs[noise], num_inference_steps=steps, **settings).sample


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    states = model.hidden_states(inputs["pixel_values"])
    latents = model.encode(inputs["pixel_values"]).latents
    found = {"encoder_last_hidden": states[-1], "latent": latents, "condition": model.condition(latents)}
    found |= {name: states[int(match[1])] for name, match in case.matching(r"encoder_hidden_(\d+)")}
    if model.unproject is not None:
        found["latent_unprojected"] = model.unproject(latents)
    if "head_x_t" in inputs:
        found["head_velocity"] = model.flow(inputs["head_x_t"], inputs["head_t"], inputs["head_cond"])
    for name, match in case.matching(r"recon(_\w+)?"):
        noise, count = f"noise{match[1] or ''}", re.fullmatch(r"_(\d+)steps", match[1] or "")
        steps = int(count[1]) if count else (None if match[1] else model.config.num_inference_steps)
        found[name] = lambda noise=noise, name=name, steps=steps: decoded(case, latents, noise, name, steps)
    return found


HOOKS = {"tokenizer": Hook(tokenizer)}

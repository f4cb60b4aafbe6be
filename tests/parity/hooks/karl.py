"""How KARL's stored outputs are obtained: budgets and qualities stand in the tensors' names."""

import torch

from hf_vistok.modeling.layers.conv_codec import flatten_grid
from hf_vistok.modeling.layers.quantizers import nearest_code

from ..harness import Case, Hook


def states(case: Case, budget: int, quality: float) -> torch.Tensor:
    model, image = case.model, case.inputs["image"]
    grid = model.encoder.grid_tokens(image, features(case))
    return model.encoder(grid, torch.full((len(image),), quality), budget)


def features(case: Case) -> torch.Tensor:
    return case.model.base.features(case.inputs["image"], case.inputs.get("vae_posterior_noise"), False, None)


def first_halting_logits(case: Case, budget: int, quality: float) -> torch.Tensor:
    """Of the first image. This run came after the others and drew the posterior noise of the last of them."""
    model, image, noise = case.model, case.inputs["image"][:1], case.inputs.get("vae_posterior_noise")
    base = model.base.features(image, None if noise is None else noise[-1:], False, None)
    last = model.encoder(model.encoder.grid_tokens(image, base), torch.full((1,), quality), budget)[:, -budget:]
    return model.halting_logits(last)


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    quality, budgets = float(case.inputs["desired_quality"].flatten()[0]), case.inputs["token_budgets"].tolist()
    noise = case.inputs.get("vae_posterior_noise")
    results = {
        "encoder_2d_tokens": flatten_grid(model.encoder.grid_tokens(image, features(case))),
        "encoder_out_last": states(case, budgets[-1], quality),
    }
    if model.config.base == "vqgan":
        results["base_token_ids"] = nearest_code(flatten_grid(features(case)), model.base.codes())
    for budget in budgets:
        encoded = model.encode(image, budget, max_error=quality, noise=noise)
        mask = encoded.token_mask
        prediction = flatten_grid(model.predict_base(encoded.latents, mask))
        results |= {
            f"pre_quant_{budget}": encoded.pre_quant,
            f"halt_logits_{budget}": model.halting_logits(states(case, budget, quality)[:, -budget:]),
            f"active_mask_{budget}": mask.long(),
            f"token_count_{budget}": mask.sum(1),
            f"quantized_{budget}": encoded.latents,
            f"token_ids_{budget}": encoded.token_ids,
            f"decoder_out_{budget}": prediction[:, :64] if model.config.base == "vqgan" else prediction,
            f"reconstruction_{budget}": model.decode(encoded.latents, mask).sample,
        }
    for name, match in case.matching(r"halt_logits_quality([\d.]+)"):
        results[name] = first_halting_logits(case, budgets[-1], float(match[1]))
    return results


HOOKS = {"tokenizer": Hook(tokenizer)}

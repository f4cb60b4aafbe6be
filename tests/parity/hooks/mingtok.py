"""How the stored outputs of MingTok are obtained."""

import torch
from transformers import DynamicCache

from ..harness import Case, Hook


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    results = of_image(model, inputs["image"])
    latents = model.encode(inputs["image"]).latents
    results["semantic_tokens_incremental"] = lambda: one_by_one(model, latents)
    if "image_other_res" in inputs:
        found = of_image(model, inputs["image_other_res"])
        results |= {f"{name}_other_res": value for name, value in found.items()}
    return results


def of_image(model, image) -> dict:
    encoded = model.encode(image)
    decoded = model.decode(encoded.latents, **encoded.decode_kwargs)
    latents = torch.cat([encoded.latents, encoded.decode_kwargs["class_latent"][:, None]], 1)
    return {
        "latent": latents,
        "latent_raw": model.denormalize_latents(latents),
        "semantic_tokens": decoded.features,
        "semantic_cls": decoded.pooled,
        "recon": decoded.sample.clamp(-1, 1),
    }


def one_by_one(model, latents) -> torch.Tensor:
    cache = DynamicCache()
    return torch.cat([model.decode_semantic(latent, cache) for latent in latents.split(1, 1)], 1)


HOOKS = {"tokenizer": Hook(tokenizer)}

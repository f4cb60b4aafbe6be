"""How the stored outputs of RAE are obtained."""

from ..harness import Case, Hook


def tokenizer(case: Case) -> dict:
    model = case.model
    encoded = model.encode(case.inputs["image"])
    return {
        "encoder_tokens": encoded.features,
        "latent": encoded.latents,
        "recon": lambda: model.decode(encoded.latents).sample,
    }


HOOKS = {"tokenizer": Hook(tokenizer)}

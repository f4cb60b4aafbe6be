"""How the stored outputs of FlexTok are obtained."""

import torch

from ..harness import Case, Hook


def as_stored(case: Case, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Ours in the axes that meta.json describes: a grid may be stored channels first, last, or flat."""
    text, model = case.meta["tensors"].get(name, "").replace(" ", ""), case.model
    if not model.is_grid:
        return tensor
    side = int(model.num_tokens**0.5)
    if tensor.ndim == 2:
        return tensor.unflatten(1, (side, side)) if "h,w" in text else tensor
    if "[B,C,h,w" in text or "levels),h,w" in text:
        return tensor
    last = tensor.permute(0, 2, 3, 1)
    return last if "h,w" in text else last.flatten(1, 2)


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    noise = inputs["vae_posterior_noise"]
    dist = model.encode_vae(inputs["image"])
    encoded = model.encode(inputs["image"], noise=noise)
    ids, latents = encoded.token_ids, model.ids_to_latents(encoded.token_ids)
    results = {
        "vae_mean": dist.mean,
        "vae_logvar": dist.logvar,
        "vae_latents": model.vae_latents(inputs["image"], noise=noise),
        "pre_quant": as_stored(case, "pre_quant", encoded.pre_quant),
        "quantized": as_stored(case, "quantized", encoded.latents),
        "token_ids": as_stored(case, "token_ids", ids),
    }
    return results | velocities(case, latents) | samples(case, ids)


def velocities(case: Case, latents: torch.Tensor) -> dict:
    model, inputs = case.model, case.inputs
    tokens = latents.flatten(2).transpose(1, 2) if model.is_grid else latents
    x_t, t, batch = inputs["x_t"], inputs["t"], len(latents)

    def velocity(mask=None, null=False):
        dropped = torch.ones(batch, dtype=torch.bool) if null else None
        return model.transformer(x_t, t, tokens, mask, dropped).sample

    results = {"velocity_full": velocity(), "velocity_uncond": lambda: velocity(null=True)}
    if "keep_k" in inputs:
        kept = (torch.arange(tokens.shape[1]) < inputs["keep_k"][0]).expand(batch, -1)
        results["velocity_keep_k"] = lambda: velocity(kept)
    return results


def samples(case: Case, ids: torch.Tensor) -> dict:
    """Samples at the stored lengths: masked slots hold id 0."""
    model, inputs, sampler = case.model, case.inputs, case.meta["sampler"]
    mask = None
    if "sample_token_lengths" in inputs:
        mask = torch.arange(ids.shape[1]) < inputs["sample_token_lengths"][:, None]
        ids = ids.masked_fill(~mask, 0)
    latents = model.ids_to_latents(ids)
    options = {"noise": inputs["init_noise"], "num_inference_steps": sampler["timesteps"]}
    results = {}
    for name, match in case.matching(r"sample_(latents|image)_(\w+)"):
        kind = match[2]
        scale = 1.0 if kind == "nocfg" else float(sampler["guidance_scale"])
        guidance = {**options, "guidance_scale": scale, "guidance": "apg" if kind == "apg" else "cfg"}
        if match[1] == "latents":
            results[name] = lambda guidance=guidance: model.sample_latents(latents, mask, **guidance)
        else:
            results[name] = lambda guidance=guidance: model.decode(latents, mask, **guidance).sample
    return results


HOOKS = {"tokenizer": Hook(tokenizer)}

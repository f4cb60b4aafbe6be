"""How the stored outputs of RecTok are obtained."""

import torch

from hf_vistok.modeling.layers.conv_codec import flatten_grid
from hf_vistok.modeling.rectok.modeling_rectok import gather_tokens

from ..harness import Case, Hook
from .latent_flow import described, sampled, scale_of, velocity


def masked(case: Case, latents: torch.Tensor) -> dict:
    """Some of the latents in another order. How many there are is stated only by the stored tensor's shape."""
    order = case.inputs["mask_ids_restore"]
    visible = gather_tokens(latents, order.argsort(1)[:, : case.variant.outputs["mask_visible_latents"].shape[1]])
    return {"mask_visible_latents": visible, "mask_decoder_raw": case.model.decoder.decode(visible, order)}


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    encoded = model.encode(inputs["image"])
    decoded = model.decode(encoded.latents).sample
    outputs = {
        "encoder_out": model.encoder.encode(inputs["image"]),
        "latent_mean": flatten_grid(encoded.latents),
        "recon": model.denormalize_pixels(decoded).clamp(0, 1),
        "decoder_raw": decoded,
    }
    if encoded.latent_dist is not None:
        posterior = encoded.latent_dist
        outputs["posterior_std"] = flatten_grid((0.5 * posterior.logvar).exp())
        outputs["kl"] = posterior.kl((1, 2, 3))
    if "stats_mean" in inputs:
        model.set_latent_statistics(inputs["stats_mean"], inputs["stats_std"])
        outputs["tokens_normalized"] = model.normalize_latents(encoded.latents)
    if "sem_noise" in inputs:
        tokens = flatten_grid(encoded.latents) if encoded.features is None else encoded.features
        t = described(case, "sem_noisy_latent", r"t\s*=\s*(\d*\.?\d+)")[0]
        noisy = model.add_noise(tokens, torch.full((len(tokens),), t), inputs["sem_noise"])
        outputs["sem_noisy_latent"] = noisy
        outputs["sem_pred"] = lambda: model.semantic_features(noisy)
    return outputs | (masked(case, outputs["latent_mean"]) if "mask_ids_restore" in inputs else {})


def flow_generator(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    scale, labels = scale_of(case, "velocity_cfg", 1.0), inputs["y"]
    null = model(inputs["x_t"], inputs["t"], torch.full_like(labels, model.null_class)).sample
    return {
        "velocity": velocity(case),
        "velocity_cfg": null + scale * (velocity(case) - null),
        "timesteps": torch.tensor(model.sample_times()),
        "sample_nocfg": lambda: model.sample_latents(inputs["noise"], labels, guidance_scale=1),
        "sample_cfg": lambda: sampled(case, "sample_cfg"),
        "sample_autoguidance": lambda: sampled(case, "sample_autoguidance", "autoguidance"),
    }


def hidden_semantics(case: Case) -> dict:
    """The semantic decoder where half of the latents are hidden: what its mask embedding is for."""
    model = case.model
    if model.semantic_decoder is None:
        return {}
    count = model.num_tokens + model.semantic_decoder.extra
    order, latents = torch.arange(count)[None], torch.ones(1, count // 2, model.latent_dim)
    return {"hidden_semantics": model.semantic_features(latents, order)}


HOOKS = {"tokenizer": Hook(tokenizer, also=hidden_semantics), "flow_generator": Hook(flow_generator)}

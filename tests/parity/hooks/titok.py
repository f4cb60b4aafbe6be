"""How the stored outputs of TiTok, its priors and MaskGIT-VQGAN are obtained."""

import torch

from ..harness import Case, Hook
from .titok_losses import training_losses


def channels_first(sequence):
    """Ours (B, N, D) in the original's layout (B, D, 1, N)."""
    return sequence.transpose(1, 2)[:, :, None]


def tokenizer(case: Case) -> dict:
    if hasattr(case.model.config, "latent_channels"):
        return maskgit_vqgan(case)
    return titok(case) if case.model.is_discrete else titok_kl(case)


def titok(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    encoded = model.encode(image)
    ids = encoded.token_ids
    losses = model.quantize(encoded.pre_quant)
    results = {
        "latents": channels_first(encoded.pre_quant),
        "token_ids": ids[:, None],
        "quantized": channels_first(encoded.latents),
        "codebook_vectors": channels_first(model.ids_to_latents(ids)),
        "decoded": model.decode_tokens(ids).sample,
        "quantizer_loss": losses.loss,
        "commitment_loss": losses.losses["commitment_loss"],
        "codebook_loss": losses.losses["codebook_loss"],
        "proxy_logits": lambda: model.decode_to_logits(model.ids_to_latents(ids)),
    }
    for name, match in case.matching(r"decoded_len(\d+)"):
        results[name] = model.decode_tokens(ids[:, : int(match[1])]).sample
    return results


def titok_kl(case: Case) -> dict:
    model, image, noise = case.model, case.inputs["image"], case.inputs["noise"]
    dist = model.encode(image).latent_dist
    sampled = model.encode(image, noise=sequence_of(noise)).latents
    return {
        "moments": lambda: channels_first(model.encoder(image)),
        "mean": channels_first(dist.mean),
        "logvar": channels_first(dist.logvar),
        "sample": channels_first(sampled),
        "decoded_sample": model.decode(sampled).sample,
        "decoded_mode": model.decode(model.encode(image).latents).sample,
        "kl": dist.kl(),
    }


def sequence_of(tensor):
    """The original's (B, D, 1, N) in our layout (B, N, D)."""
    return tensor[:, :, 0].transpose(1, 2)


def maskgit_vqgan(case: Case) -> dict:
    model = case.model
    encoded = model.encode(case.inputs["image"])
    decoded = model.decode_tokens(encoded.token_ids).sample
    return {
        "latents": encoded.pre_quant,
        "token_ids": encoded.token_ids,
        "quantized": encoded.latents,
        "decoded_raw": decoded,
        "decoded": decoded.clamp(0, 1),
    }


def masked_prior(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    labels, ids = inputs["class_labels"], inputs["input_ids"]
    call = case.config["fixture_overrides"]["sampling_call"]
    seen = [torch.full((len(labels), model.num_tokens), model.mask_token_id)]
    generated = model.generate(
        labels,
        num_inference_steps=call["num_sample_steps"],
        cfg_scale=call["guidance_scale"],
        cfg_schedule=call["guidance_decay"],
        cfg_power=call.get("guidance_scale_pow"),
        choice_temperature=call["randomize_temperature"],
        anneal_logits=call["softmax_temperature_annealing"],
        draws=(inputs["token_uniforms"], inputs["confidence_uniforms"]),
        callback=lambda step, ids: seen.append(ids),
    ).token_ids
    return {
        "logits_cond": model.predict(ids, labels),
        "logits_uncond": model.predict(ids, torch.full_like(labels, model.config.num_classes)),
        "ids_before_step": torch.stack(seen[:-1]),
        "generated_ids": generated,
    }


def losses(case: Case) -> dict:
    return training_losses(case.weights, case.config, case.inputs)


HOOKS = {
    "tokenizer": Hook(tokenizer),
    "masked_prior": Hook(masked_prior),
    "training_losses": Hook(losses, converts=False),
}

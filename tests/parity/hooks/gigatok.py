"""How the stored outputs of GigaTok's tokenizers and priors are obtained."""

from hf_vistok.modeling.layers.conv_codec import unflatten_grid
from hf_vistok.modeling.layers.generation import TokenSampler

from ..harness import Case, Hook


def original_layout(case: Case, sequence):
    """Ours (B, N, D) in the original's layout: (B, D, 1, N), or the grid."""
    if case.model.config.layout == "1d":
        return unflatten_grid(sequence, 1, sequence.shape[1])
    return unflatten_grid(sequence, case.model.config.grid_size, case.model.config.grid_size)


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    encoded = model.encode(image)
    features = model.encoder(image)

    def place(latents):
        return latents if model.latent_layout == "grid" else original_layout(case, latents)

    return {
        "cnn_feature": features,
        "vit_out": original_layout(case, model.token_encoder(features)),
        "pre_quant": place(encoded.pre_quant),
        "quantized": place(encoded.latents),
        "token_ids": encoded.token_ids,
        "codebook_lookup": place(model.ids_to_latents(encoded.token_ids)),
        "decoder_spatial_feature": model.decode_features(encoded.latents),
        "decoded": model.decode(encoded.latents).sample,
        "decoded_from_ids": model.decode_tokens(encoded.token_ids).sample,
        "distill_feature": lambda: model.alignment_features(encoded.latents),
    }


def ar_prior(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    ids, labels = inputs["token_ids"], inputs["class_labels"]
    logits = model(ids, labels).logits
    results = {"logits": logits, "logits_uncond": model(ids, labels, null=True).logits}
    for name, match in case.matching(r"greedy_(\w+)"):
        settings = dict(case.meta["sampling"][match[1]])
        window = settings.pop("cfg_schedule_kwargs", {})
        window = {f"cfg_{key}".replace("cfg_min_cfg_", "cfg_min_"): value for key, value in window.items()}
        settings = {"cfg_schedule": "constant", **settings, **window}
        results[name] = model.generate(labels, **settings, temperature=0, top_k=0, num_tokens=ids.shape[1]).token_ids
    for name, match in case.matching(r"probs_t([\d.]+)_topk(\d+)_topp([\d.]+)_at_(\d+)"):
        sampler = TokenSampler(temperature=float(match[1]), top_k=int(match[2]), top_p=float(match[3]))
        results[name] = sampler.probabilities(logits[:, int(match[4])])
    return results


HOOKS = {"tokenizer": Hook(tokenizer), "ar_prior": Hook(ar_prior)}

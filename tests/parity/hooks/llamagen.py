"""How the stored outputs of LlamaGen's tokenizers and priors are obtained."""

from hf_vistok.modeling.layers.conv_codec import flatten_grid
from hf_vistok.modeling.layers.generation import TokenSampler

from ..harness import Case, Hook


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    size = tuple(image.shape[2:])
    encoded = model.encode(image)
    losses = model.quantize.train()(flatten_grid(encoded.pre_quant)).losses
    model.quantize.eval()
    zero = image.new_zeros(())
    return {
        "encoder_out": model.encoder(image),
        "pre_quant": encoded.pre_quant,
        "token_ids": encoded.token_ids,
        "quantized": encoded.latents,
        "codebook_lookup": model.ids_to_latents(encoded.token_ids, image_size=size),
        "decoded": model.decode(encoded.latents).sample,
        "decoded_from_ids": model.decode_tokens(encoded.token_ids, image_size=size).sample,
        "vq_loss": losses["codebook_loss"].view(1),
        "commitment_loss": losses["commitment_loss"].view(1),
        "entropy_loss": losses.get("entropy_loss", zero).view(1),
    }


def ar_prior(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    ids = inputs["token_ids"]
    names = {"class_labels": "class_labels", "caption_embeddings": "encoder_hidden_states"}
    condition = {ours: inputs[theirs] for theirs, ours in names.items() if theirs in inputs}
    logits = model(ids, **condition).logits
    results = {"logits": logits, "logits_uncond": model(ids, **condition, null=True).logits}
    for name, match in case.matching(r"greedy_(\w+)"):
        results[name] = greedy(case, match[1], condition)
    for name, match in case.matching(r"probs_t([\d.]+)_topk(\d+)_topp([\d.]+)_at_(\d+)"):
        sampler = TokenSampler(temperature=float(match[1]), top_k=int(match[2]), top_p=float(match[3]))
        results[name] = sampler.probabilities(logits[:, int(match[4])])
    return results


def greedy(case: Case, setting: str, condition: dict):
    import re

    masked = re.fullmatch(r"masked_cfg([\d.]+)", setting)
    if masked:
        settings = {"cfg_scale": float(masked[1])}
        condition = {**condition, "encoder_attention_mask": case.inputs["caption_mask"]}
    else:
        settings = case.meta["sampling"][setting]
    settings = {"top_k": 0, **settings}
    length = case.inputs["token_ids"].shape[1]
    return case.model.generate(**condition, **settings, temperature=0, num_tokens=length).token_ids


HOOKS = {"tokenizer": Hook(tokenizer), "ar_prior": Hook(ar_prior)}

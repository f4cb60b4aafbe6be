"""How the stored outputs of ResTok's tokenizer and prior are obtained."""

import torch

from ..harness import Case, Hook
from .titok import channels_first


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    encoded = model.encode(image)
    ids, latents = encoded.token_ids, encoded.latents
    results = {
        "cnn_feature": model.encode_features(image),
        "pre_quant": channels_first(encoded.pre_quant),
        "quantized": channels_first(latents),
        "token_ids": ids,
        "decoded_feature": model.decode_features(latents),
        "decoded": model.decode(latents).sample,
        "decoded_from_ids": model.decode_tokens(ids).sample,
    }
    if "mixed_lengths" in case.inputs:
        mask = torch.arange(model.num_tokens) < case.inputs["mixed_lengths"][:, None]
        results["decoded_mixed"] = model.decode(latents, mask).sample
    for name, match in case.matching(r"decoded_first(\d+)"):
        results[name] = model.decode(model.encode(image, num_tokens=int(match[1])).latents).sample
    blocks = model.image_blocks(image)
    for name, match in case.matching(r"image_tokens_(\d+)"):
        results[name] = blocks[int(match[1])]
    return results


def ar_prior(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    ids, labels = inputs["token_ids"], inputs["class_labels"]
    results = {"logits": model(ids, labels).logits, "logits_uncond": model(ids, labels, null=True).logits}
    for name, match in case.matching(r"greedy_(\w+)"):
        settings = dict(case.meta["sampling"][match[1]])
        window = settings.pop("cfg_schedule_kwargs", {})
        window = {f"cfg_{key}".replace("cfg_min_cfg_", "cfg_min_"): value for key, value in window.items()}
        settings = {"cfg_schedule": "constant", **settings, **window}
        results[name] = model.generate(labels, **settings, temperature=0, top_p=1.0).token_ids
    return results


HOOKS = {"tokenizer": Hook(tokenizer), "ar_prior": Hook(ar_prior)}

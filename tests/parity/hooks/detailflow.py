"""How the stored outputs of DetailFlow's tokenizers and priors are obtained."""

import torch

from ..harness import Case, Hook


def resolution_table(case: Case):
    config = case.model.config
    rows = [[count, config.target_size(count), *[config.picture_size(count)] * 3] for count in config.valid_num_tokens]
    return torch.tensor(rows)


def tokenizer(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    image = inputs["image"]
    encoded = model.encode(image)
    latents = encoded.latents
    results = {
        "res_table": resolution_table(case),
        "encoder_latents": encoded.features,
        "pre_quant": encoded.pre_quant,
        "quantized": latents,
        "token_ids": encoded.token_ids,
        "decoded": model.decode(latents).sample,
        "decoded_from_ids": model.decode_tokens(encoded.token_ids).sample,
        "global_token_projection": model.global_features(latents),
    }
    if "image_small" in inputs:
        results["token_ids_small"] = model.encode(inputs["image_small"]).token_ids
    for name, match in case.matching(r"decoded_partial(\d*)"):
        count, size = inputs[f"partial{match[1]}_t"].tolist()
        results[name] = model.decode(latents[:, :count], image_size=size).sample
    for start in sorted({int(match[1]) for _, match in case.matching(r"noise(\d+)_\w+")}):
        streams = model.correction_streams(image, start, inputs[f"noise{start}_topk_choice"])
        for kind in ("clean", "input", "label"):
            results[f"noise{start}_ids_{kind}"] = getattr(streams, f"ids_{kind}")
        results[f"noise{start}_quant"] = streams.codes
    return results


TEACHER = {"teacher_features": "the frozen SigLIP2 is not part of the tokenizer; transformers has it"}


def ar_prior(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    ids, labels = inputs["token_ids"], inputs["class_labels"]
    results = {"logits": model(ids, labels).logits, "logits_uncond": model(ids, labels, null=True).logits}
    for name, match in case.matching(r"greedy_cfg([\d.]+)(_gradual)?"):
        schedule = "gradual" if match[2] else "constant"
        settings = {"cfg_scale": float(match[1]), "cfg_schedule": schedule, "temperature": 0}
        results[name] = model.generate(labels, **settings).token_ids
    return results


HOOKS = {"tokenizer": Hook(tokenizer, TEACHER), "ar_prior": Hook(ar_prior)}

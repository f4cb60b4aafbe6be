"""How the stored outputs of UniTok and of MedITok, which is one, are obtained."""

import re

import torch
from torch.nn import functional as F

from ..harness import Case, Hook


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    encoded = model.encode(image)
    decoded = model.decode_tokens(encoded.token_ids)
    results = {
        "encoder_features": encoded.features,
        "pooled_features": encoded.pooled_features,
        "pre_quant": encoded.pre_quant,
        "ids": encoded.token_ids.transpose(1, 2),
        "quantized": model.ids_to_latents(encoded.token_ids),
        "post_quant": decoded.features,
        "reconstruction_raw": decoded.sample,
        "reconstruction": decoded.sample.clamp(-1, 1),
        "vq_loss": encoded.loss.view(1),
    }
    if decoded.pooled is not None:
        results["image_embedding"] = model.get_image_features(image)
    if "text_tokens" in case.inputs:
        results["text_embedding"] = model.get_text_features(case.inputs["text_tokens"])
    return results


def ar_prior(case: Case) -> dict:
    model, labels = case.model, case.inputs["class_labels"]
    ids = case.inputs["ids"].transpose(1, 2)
    null = labels == model.config.num_classes
    plain, dropped = (model(ids, labels.masked_fill(null, 0), null=which) for which in (False, True))
    logits = torch.where(null.view(-1, 1, 1, 1), dropped.logits, plain.logits)
    scale = re.search(r"cfg_scale (\d+(?:\.\d+)?)", case.meta["tensors"].get("greedy_cfg", ""))

    def greedy(cfg_scale: float):
        return lambda: model.generate(labels[:-1], cfg_scale=cfg_scale, temperature=0.0).token_ids.transpose(1, 2)

    return {
        "logits": logits.transpose(1, 2),
        "loss": F.cross_entropy(logits.flatten(0, 2), ids.flatten()).view(1),
        "greedy_nocfg": greedy(1.0),
        "greedy_cfg": greedy(float(scale[1]) if scale else 2.5),
    }


def scores(case: Case) -> dict:
    """The learned scale acts on comparisons alone, of which the original stored none."""
    model = case.model
    if not model.config.embed_dim:
        return {}
    images = model.get_image_features(case.inputs["image"])
    return {"contrastive_loss": model.contrastive_loss(images, images)}


HOOKS = {"tokenizer": Hook(tokenizer, also=scores), "ar_prior": Hook(ar_prior)}

"""How FQGAN's stored outputs are obtained: names end in the codebook's."""

import torch

from ..harness import Case, Hook

CODEBOOKS = {2: ("vis", "sem"), 3: ("vis", "sem_mid", "sem_high")}
FEATURES = {2: ("semantic_feat",), 3: ("mid_semantic_feat", "high_semantic_feat")}


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    encoded, count = model.encode(image), model.num_codebooks
    pre_quant, quantized = encoded.pre_quant.chunk(count, 1), encoded.latents.chunk(count, 1)
    model.train()
    trained = model.quantize_all(list(pre_quant))
    model.eval()
    results = {
        "quantized": model.ids_to_latents(encoded.token_ids),
        "reconstruction": model.decode_tokens(encoded.token_ids).sample,
        "disentangle_loss": model.disentangle_loss(encoded.latents).view(1),
        **dict(zip(FEATURES[count], model.predict_features(encoded.latents), strict=False)),
    }
    for i, name in enumerate(CODEBOOKS[count]):
        results |= {
            f"latent_{name}": pre_quant[i],
            f"ids_{name}": encoded.token_ids[..., i],
            f"quant_{name}": quantized[i],
            f"train_losses_{name}": terms(trained[i].losses),
        }
    return results


def terms(losses: dict) -> torch.Tensor:
    zero = torch.zeros(())
    return torch.stack([losses["codebook_loss"], losses["commitment_loss"], losses.get("entropy_loss", zero)])


def ar_prior(case: Case) -> dict:
    model, labels = case.model, case.inputs["class_labels"]
    books = range(model.num_codebooks)
    ids = torch.stack([case.inputs[f"ids_{i + 1}"] for i in books], -1)
    null = labels == model.config.num_classes
    output, dropped = model(ids, labels.masked_fill(null, 0)), model(ids, labels.masked_fill(null, 0), null=True)
    logits = torch.where(null.view(-1, 1, 1, 1), dropped.logits, output.logits)
    losses = [torch.nn.functional.cross_entropy(logits[:, :, i].flatten(0, 1), ids[..., i].flatten()) for i in books]
    results = {f"logits_{i + 1}": logits[:, :, i] for i in books}
    results["loss"] = (sum(losses) / len(losses)).view(1)
    for name, scale in (("greedy_nocfg", 1.0), ("greedy_cfg", 3.0)):
        written = model.generate(labels[:-1], cfg_scale=scale, temperature=0.0).token_ids
        results[name] = written.permute(2, 0, 1)
    return results


HOOKS = {"tokenizer": Hook(tokenizer), "ar_prior": Hook(ar_prior)}

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


HOOKS = {"tokenizer": Hook(tokenizer)}

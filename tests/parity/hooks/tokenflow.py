"""How the stored outputs of TokenFlow's tokenizer are obtained."""

from ..harness import Case, Hook


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    encoded = model.encode(image)
    ids, semantic = encoded.token_ids, model.config.semantic_dim
    decoded = model.decode_tokens(ids)
    return {
        "semantic_latent": encoded.pre_quant[:, :semantic].flatten(2).transpose(1, 2),
        "pixel_latent": encoded.pre_quant[:, semantic:],
        "token_ids": ids,
        "quantized": encoded.latents,
        "semantic_features": decoded.features,
        "reconstruction": decoded.sample,
        "token_embeddings": model.get_codebook_entry(ids),
        "reconstruction_from_ids_without_last_scale": lambda: (
            model.decode_tokens(ids[:, : model.valid_num_tokens[-2]]).sample
        ),
    }


HOOKS = {"tokenizer": Hook(tokenizer)}

"""How the stored outputs of ReToK are obtained."""

from ..harness import Case, Hook
from .gigatok import original_layout


def tokenizer(case: Case) -> dict:
    model, image = case.model, case.inputs["image"]
    features = model.encoder(image)
    pre_quant, output = model.encode_all(image)
    encoded = model.encode(image)
    results = {
        "cnn_feature": features,
        "vit_out": original_layout(case, model.token_encoder(features)),
        "pre_quant": original_layout(case, pre_quant),
        "quantized": original_layout(case, output.quantized),
        "token_ids_all": output.indices,
        "token_ids": encoded.token_ids,
        "decoder_spatial_feature": model.decode_features(encoded.latents),
        "decoded": model.decode(encoded.latents).sample,
        "decoded_from_ids": model.decode_tokens(encoded.token_ids).sample,
    }
    for name, match in case.matching(r"decoded_first(\d+)"):
        results[name] = model.decode(model.encode(image, num_tokens=int(match[1])).latents).sample
    return results


HOOKS = {"tokenizer": Hook(tokenizer)}

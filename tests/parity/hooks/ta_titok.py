"""How the stored outputs of TA-TiTok are obtained."""

from hf_vistok.modeling.layers.text import clip_text_states

from ..harness import Case, Hook
from .titok import channels_first, sequence_of


def tokenizer(case: Case) -> dict:
    text = clip_text_states(case.parts["text_encoder"], case.inputs["text_input_ids"]).last
    results = vq(case, text) if case.model.is_discrete else kl(case, text)
    return results | {"text_guidance": text}


def vq(case: Case, text) -> dict:
    model = case.model
    encoded = model.encode(case.inputs["image"])
    return {
        "latents": channels_first(encoded.pre_quant),
        "token_ids": encoded.token_ids[:, None],
        "quantized": channels_first(encoded.latents),
        "decoded": model.decode_tokens(encoded.token_ids, text_hidden_states=text).sample,
        "decoded_swapped_text": model.decode_tokens(encoded.token_ids, text_hidden_states=text.flip(0)).sample,
        "quantizer_loss": encoded.loss,
    }


def kl(case: Case, text) -> dict:
    model, image = case.model, case.inputs["image"]
    dist = model.encode(image).latent_dist
    sampled = model.encode(image, noise=sequence_of(case.inputs["noise"])).latents
    return {
        "moments": channels_first(model.encoder(image)),
        "mean": channels_first(dist.mean),
        "logvar": channels_first(dist.logvar),
        "sample": channels_first(sampled),
        "decoded_sample": model.decode(sampled, text_hidden_states=text).sample,
        "decoded_mode": model.decode(dist.mode(), text_hidden_states=text).sample,
        "decoded_swapped_text": model.decode(sampled, text_hidden_states=text.flip(0)).sample,
    }


HOOKS = {"tokenizer": Hook(tokenizer)}

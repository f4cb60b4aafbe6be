"""How the stored outputs of FlowTok and its tokenizer are obtained."""

from hf_vistok.modeling.layers.text import clip_text_states

from ..harness import Case, Hook
from .ta_titok import tokenizer


def flow_generator(case: Case) -> dict:
    model, inputs, call = case.model, case.inputs, case.config["fixture_overrides"]["sampling_call"]
    text = clip_text_states(case.parts["text_encoder"], inputs["text_input_ids"]).last
    posterior = model.encode_text(text)
    latents = posterior.sample(noise=inputs["text_noise"])
    psi, target = model.interpolate(latents, inputs["image_latent"], inputs["t"])
    return {
        "text_tokens": text,
        "text_mu": posterior.mean,
        "text_logvar": posterior.logvar,
        "text_latent": latents,
        "text_projected": model.project_text(text),
        "velocity": model(inputs["x_t"], inputs["t"], inputs["null_indicator"]).sample,
        "psi": psi,
        "target_velocity": target,
        "kld": model.kld(posterior),
        "sampled": model.sample_latents(
            latents, num_inference_steps=call["sample_steps"], guidance_scale=call["scale"]
        ),
    }


HOOKS = {"tokenizer": Hook(tokenizer), "flow_generator": Hook(flow_generator)}

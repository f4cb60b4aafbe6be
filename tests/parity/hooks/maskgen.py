"""How the stored outputs of MaskGen are obtained."""

import torch

from hf_vistok.modeling.layers.text import clip_text_states

from ..harness import Case, Hook


def masked_prior(case: Case) -> dict:
    inputs, tower = case.inputs, case.parts["text_encoder"]
    text = clip_text_states(tower, inputs["text_input_ids"])
    null = clip_text_states(tower, inputs["null_text_input_ids"])
    conditions = {
        "encoder_hidden_states": text.penultimate,
        "pooled_projections": text.pooled,
        "negative_encoder_hidden_states": null.penultimate,
        "negative_pooled_projections": null.pooled,
    }
    shared = {
        "condition": text.penultimate,
        "condition_pooled": text.pooled[:, None],
        "null_condition": null.penultimate,
        "null_condition_pooled": null.pooled[:, None],
    }
    family = over_ids if hasattr(case.model, "mask_token_id") else over_vectors
    return shared | family(case, case.config["fixture_overrides"]["sampling_call"], conditions)


def over_ids(case: Case, call: dict, conditions: dict) -> dict:
    model, inputs = case.model, case.inputs
    positive = (conditions["encoder_hidden_states"], conditions["pooled_projections"])
    seen = [torch.full_like(inputs["input_ids"], model.mask_token_id)]
    generated = model.generate(
        **conditions,
        num_inference_steps=call["num_sample_steps"],
        cfg_scale=call["guidance_scale"],
        cfg_schedule=call["guidance_decay"],
        cfg_power=call.get("guidance_decay_scale_pow"),
        choice_temperature=call["randomize_temperature"],
        anneal_logits=call["softmax_temperature_annealing"],
        noisy_confidence=call["prob_sorting"],
        draws=(inputs["token_uniforms"], inputs["confidence_uniforms"]),
        callback=lambda step, ids: seen.append(ids),
    ).token_ids
    return {
        "logits": model(inputs["input_ids"], *positive, inputs.get("aesthetic_score")).logits,
        "ids_before_step": torch.stack(seen[:-1]),
        "generated_ids": generated,
    }


def over_vectors(case: Case, call: dict, conditions: dict) -> dict:
    model, inputs = case.model, case.inputs
    positive = (conditions["encoder_hidden_states"], conditions["pooled_projections"])
    batch = len(inputs["orders"])
    start = [inputs[f"init_noise_{k}"] for k in range(call["num_iter"])]
    steps = [inputs[f"step_noise_{k}"] for k in range(call["num_iter"])]
    generated = model.generate(
        **conditions,
        micro_conditions=call.get("aes_scores"),
        num_inference_steps=call["num_iter"],
        cfg_scale=call["cfg"],
        cfg_schedule=call["cfg_schedule"],
        head_temperature=call["temperature"],
        draws={
            "orders": inputs["orders"],
            "start": [noise.unflatten(0, (batch, -1)) for noise in start],
            # with guidance there are as many rows again, which change nothing
            "steps": [noise[:, : len(start[k])].unflatten(1, (batch, -1)) for k, noise in enumerate(steps)],
        },
    ).latents
    return {
        "mae_output": model.predict(
            inputs["latents_in"], inputs["mask"].bool(), *positive, inputs.get("aesthetic_score")
        ),
        "diff_output": model.head(inputs["diff_x_t"], inputs["diff_t"], inputs["diff_condition"]),
        "sampled_latents": generated.transpose(1, 2)[:, :, None],
    }


HOOKS = {"masked_prior": Hook(masked_prior)}

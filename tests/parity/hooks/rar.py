"""How the stored outputs of RAR are obtained."""

from ..harness import Case, Hook


def ar_prior(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    ids, labels, orders = inputs["token_ids"], inputs["class_labels"], inputs["orders"]
    call = case.config["fixture_overrides"]["sampling_call"]
    generated = model.generate(
        labels,
        cfg_scale=call["guidance_scale"],
        cfg_power=call["guidance_scale_pow"],
        temperature=call["randomize_temperature"],
        draws=inputs["exponential_noise"],
    )
    return {
        "logits_raster": model(ids, labels).logits,
        "logits_permuted": model(ids, labels, orders).logits,
        "labels_permuted": ids.gather(1, orders),
        "logits_uncond": model(ids, labels, null=True).logits,
        "generated_ids": generated.token_ids,
    }


HOOKS = {"ar_prior": Hook(ar_prior)}

"""How the stored outputs of FlexAR are obtained."""

import torch

from ..harness import Case, Hook


def encode_text(case: Case, kind: str) -> dict[str, torch.Tensor]:
    ids, mask = case.inputs[f"{kind}_input_ids"], case.inputs[f"{kind}_attention_mask"]
    states = case.parts["text_encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def ar_prior(case: Case) -> dict:
    model, ids, results = case.model, case.inputs["token_ids"], {}
    if model.is_text_conditional:
        condition, null = encode_text(case, "text"), encode_text(case, "null")
        results["text_embeddings"] = model.text_projection(condition["encoder_hidden_states"])
        results["logits_uncond"] = model(ids, **null).logits
    else:
        condition, null = {"class_labels": case.inputs["class_labels"]}, {}
        results["logits_uncond"] = model(ids, **condition, null=True).logits
    results["logits"] = model(ids, **condition).logits
    length = ids.shape[1]
    negative = {f"negative_{name}": value for name, value in null.items()}
    scale = case.config["generation"]["cfg_factor"]

    def greedy(**options):
        return model.generate(**condition, **options, temperature=0, top_k=0, top_p=1.0).token_ids

    results["greedy_nocfg"] = greedy(cfg_scale=1.0, num_tokens=length)
    results["greedy_cfg"] = greedy(cfg_scale=scale, num_tokens=length, **negative)
    for name, match in case.matching(r"greedy_cfg_prefix(\d+)"):
        given = ids[:, : int(match[1])]
        results[name] = greedy(cfg_scale=scale, num_tokens=length - 2, prior_token_ids=given, **negative)
    return results


HOOKS = {"ar_prior": Hook(ar_prior)}

"""How the stored outputs of COMiT are obtained."""

import json
import re

from torch.nn import functional as F

from ..harness import Case, Hook, later


def described(case: Case, name: str, pattern: str, default):
    """A number or list that only the description of a stored tensor says."""
    match = re.search(pattern, case.meta["tensors"].get(name, ""))
    return json.loads(match[1]) if match else default


def tokenizer(case: Case) -> dict:
    pictures = [name for name in case.names if re.match(r"latents_|image_", name)]
    tokens = [name for name in case.names if re.match(r"ids_|offsets_|adaptive_", name)]
    return one_call(case) | later(lambda: tokenized(case), tokens) | later(lambda: drawn(case), pictures)


def one_call(case: Case) -> dict:
    model, inputs = case.model, case.inputs
    message = model.ids_to_latents(inputs["msg_ids_in"])
    call = {"message": message, "offset": inputs["offsets_in"]}
    output = model.transformer(inputs["x_t"], inputs["t"], **call)
    unfused = model.transformer(inputs["x_t"], inputs["t"], **call, masked_attention=True)
    crop = model.transformer(inputs["x_crop"], inputs["t"].new_ones(len(message)), **call)
    return {
        "velocity": output.velocity,
        "msg_update_pre_quant": output.update,
        "location_out": output.location,
        "representation": output.features,
        "representation_msg": output.message_features,
        "msg_ids_out": model.quantizer(output.update).indices,
        "velocity_unfused": unfused.velocity,
        "msg_update_unfused": unfused.update,
        "velocity_crop": crop.velocity,
        "msg_update_crop": crop.update,
    }


def pixels(case: Case):
    return case.inputs["image_uint8"].float() / 127.5 - 1


def tokenized(case: Case) -> dict:
    count = described(case, "ids_raster", r"(\d+) crops", 3)
    seen = described(case, "ids_raster_global", r"(\d+) observations", 3)
    orders = {
        "raster": {"num_crops": count},
        "raster_global": {"num_crops": seen, "global_crop": True},
        "explicit": {"crop_order": described(case, "ids_explicit", r"(\[[\d, ]+\])", [8, 0, 4])},
        "adaptive": {
            "crop_order": "adaptive",
            "num_crops": described(case, "ids_adaptive", r"(\d+) crops", count),
            "legacy_batch": True,
            "noise": {"start": case.inputs["init_noise"]},
        },
    }
    results = {}
    for name, options in orders.items():
        encoded = case.model.encode(pixels(case), **options)
        results[f"ids_{name}"] = encoded.token_ids
        results[f"offsets_{name}"] = encoded.decode_kwargs["offset"]
        if name == "adaptive":
            results["adaptive_crop_ids"] = encoded.decode_kwargs["crop_order"].T
    return results


def drawn(case: Case) -> dict:
    model, sampler, noise = case.model, case.meta["sampler"], case.inputs["init_noise"]
    encoded = model.encode(pixels(case), num_crops=described(case, "ids_raster", r"(\d+) crops", 3))
    message, offset = model.ids_to_latents(encoded.token_ids), encoded.decode_kwargs["offset"]
    model.config.update(
        {f"guidance_{name}": sampler[key] for name, key in (("eta", "eta"), ("norm_threshold", "norm_threshold"))}
    )
    model.config.guidance_momentum = sampler["apg_momentum"]
    steps, scale = sampler["num_steps"], sampler["cfg_weight"]
    midpoint = described(case, "latents_midpoint_cfg", r"(\d+) steps", 2)
    image = model.decode(
        message, offset=offset, noise=noise, num_inference_steps=steps, guidance_scale=scale, solver="euler"
    ).sample
    return {
        "latents_euler_cfg": model.draw_latents(message, offset, noise, steps, scale),
        "latents_euler_nocfg": model.draw_latents(message, offset, noise, steps, 0.0),
        "latents_midpoint_cfg": model.draw_latents(message, offset, noise, midpoint, scale, "midpoint"),
        "image_euler_cfg_64": F.avg_pool2d(image, 4),
    }


HOOKS = {"tokenizer": Hook(tokenizer)}

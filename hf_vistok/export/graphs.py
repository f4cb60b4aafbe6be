"""
What is exported as one graph each: encoder, decoder, prior, flow transformer, VAE, text encoder.

Each wrapper has tensors only as inputs and outputs, and its own names for them. Python checks that read values are left
out; whoever runs a graph gives ids in range.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

BATCH = 2  # of examples; 1 would be baked into a graph


@dataclass
class Graph:
    """
    One graph to export.

    Args:
        name: of the file, without ".onnx".
        module: maps the inputs, by name, to a tensor or a tuple of tensors.
        inputs: name -> example, batch first.
        outputs: names.
        lengths: further axes that vary: input -> {axis: name}.
        bounds: the smallest and largest size of such an axis, by its name; 1 and any by default.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    lengths: dict[str, dict[int, str]] = field(default_factory=dict)
    bounds: dict[str, tuple[int, int | None]] = field(default_factory=dict)


class Encoder(nn.Module):
    """`pixel_values` to ids, or to the latents of a continuous tokenizer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, N)`, `(B, N, C)`, or latents."""
        output = self.model.encode(pixel_values)
        return output.token_ids if self.model.is_discrete else output.latents


class Decoder(nn.Module):
    """Ids or latents to pixels."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Ids `(B, N)` or latents, and for a prefix-ordered tokenizer which to use, to `(B, 3, H, W)`."""
        decode = self.model.decode_tokens if self.model.is_discrete else self.model.decode
        return decode(tokens, token_mask).sample


class Prefill(nn.Module):
    """The first step of an autoregressive prior: conditions to logits, keys and values."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, **condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `(B, 1, V)`, keys and values `(layers, B, heads, T, d)`."""
        cache = DynamicCache()
        logits = self.prior.prefill(condition, None, cache)
        return logits, *keys_and_values(cache)


class Step(nn.Module):
    """One step of an autoregressive prior behind the ids that the last step wrote."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, token_ids: Tensor, keys: Tensor, values: Tensor, **condition: Tensor) -> tuple[Tensor, ...]:
        """Ids `(B, 1)` and what the last step gave, to logits `(B, 1, V)`, keys and values."""
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(keys.unbind(0), values.unbind(0), strict=True)):
            cache.update(key, value, layer)
        logits = self.prior.decode_step(token_ids, condition, cache)
        return logits, *keys_and_values(cache)


class MaskedStep(nn.Module):
    """Logits of all positions of a masked prior."""

    def __init__(self, prior: Any) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, token_ids: Tensor, class_labels: Tensor) -> Tensor:
        """Ids `(B, N)`, open ones `mask_token_id`, and labels `(B,)` to `(B, N, V)`."""
        return self.prior.predict(token_ids, class_labels)


class Velocity(nn.Module):
    """One step of FlexTok's flow, from ids."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, timestep: Tensor, token_ids: Tensor, **options: Tensor) -> Tensor:
        """Noised latents `(B, C, h, w)` at times `(B,)` to the velocity `(B, C, h, w)`."""
        latents = self.transformer.ids_to_latents(token_ids)
        return self.transformer(hidden_states, timestep, latents, **options).sample


class VaeDecoder(nn.Module):
    """Scaled latents to pixels in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(B, 3, H, W)`."""
        from hf_vistok.modeling.layers.vae import vae_decode

        return vae_decode(self.vae, latents)


class TextEncoder(nn.Module):
    """Ids of a text to its features."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """`(B, T)` and `(B, T)` to `(B, T, D)` and, where the encoder has one, a pooled text `(B, D)`."""
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state,) if pooled is None else (output.last_hidden_state, pooled)


def keys_and_values(cache: DynamicCache) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers, each `(layers, B, heads, T, d)`."""
    return torch.stack([layer.keys for layer in cache.layers]), torch.stack([layer.values for layer in cache.layers])


def graphs_of(model: Any) -> Iterator[Graph]:
    """
    The graphs of a tokenizer, a prior or a pipeline.

    Raises:
        ValueError: for a model of which nothing can be exported, or not yet, with the reason.
    """
    from hf_vistok.modeling.ar_prior_utils import PreTrainedARPrior
    from hf_vistok.modeling.flextok.modeling_flextok import FlexTokModel
    from hf_vistok.modeling.modeling_utils import PreTrainedImageTokenizer

    if hasattr(model, "components"):
        yield from pipeline_graphs(model)
    elif isinstance(model, FlexTokModel):
        yield from flextok_graphs(model)
    elif isinstance(model, PreTrainedImageTokenizer):
        yield from tokenizer_graphs(model)
    elif isinstance(model, PreTrainedARPrior):
        yield from ar_graphs(model)
    elif hasattr(model, "predict") and hasattr(model, "mask_token_id") and model.config.num_classes:
        ids = torch.full((BATCH, model.num_tokens), model.mask_token_id)
        yield Graph("prior", MaskedStep(model), {"token_ids": ids, "class_labels": torch.arange(BATCH)}, ("logits",))
    else:
        raise ValueError(f"{type(model).__name__} has no graphs of its own: only tokenizers, priors and pipelines do.")


def pixel_example(model: Any) -> Tensor:
    """Random pictures in the tokenizer's pixel space."""
    size, generator = model.config.image_size, torch.Generator().manual_seed(0)
    return model.normalize_pixels(torch.rand(BATCH, model.config.num_channels, size, size, generator=generator))


def tokenizer_graphs(model: Any) -> Iterator[Graph]:
    """Encoder and decoder."""
    name = type(model).__name__
    if model.encode_conditioning or model.decode_conditioning or model.decodes_to != "pixels":
        raise ValueError(f"{name} needs more than pixels or ids; its graphs are not exported.")
    if {"generator", "noise"} & set(model._decode_options):
        raise ValueError(f"{name} draws its pictures by a sampler of its own; its graphs are not exported.")
    pixels, outputs = pixel_example(model), ("token_ids" if model.is_discrete else "latents",)
    yield Graph("encoder", Encoder(model), {"pixel_values": pixels}, outputs)
    with torch.no_grad():
        encoded = model.encode(pixels)
    inputs = {"tokens": encoded.token_ids if model.is_discrete else encoded.latents}
    if model.is_prefix_ordered and model.mask_mode in ("attention", "token"):
        inputs["token_mask"] = torch.ones(inputs["tokens"].shape[:2], dtype=torch.bool)
    yield Graph("decoder", Decoder(model), inputs, ("sample",), bounds=batch_bounds(model))


def batch_bounds(module: nn.Module) -> dict[str, tuple[int, int | None]]:
    """diffusers' upsampling takes another path from 64 pictures on: a graph holds one path."""
    from diffusers.models.upsampling import Upsample2D

    return {"batch": (1, 63)} if any(isinstance(part, Upsample2D) for part in module.modules()) else {}


def flextok_graphs(model: Any) -> Iterator[Graph]:
    """Encoder, one step of the flow, and the VAE's decoder."""
    if model.encoder is not None:
        yield Graph("encoder", Encoder(model), {"pixel_values": pixel_example(model)}, ("token_ids",))
    yield from flow_graphs(model.transformer, model.vae)


def flow_graphs(transformer: Any, vae: Any) -> Iterator[Graph]:
    """One step of the flow, and the VAE's decoder."""
    config, generator = transformer.config, torch.Generator().manual_seed(0)
    latents = torch.randn(BATCH, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    ids = torch.randint(transformer.codebook_size, (BATCH, transformer.num_tokens), generator=generator)
    inputs = {"hidden_states": latents, "timestep": torch.linspace(0.3, 0.9, BATCH), "token_ids": ids}
    if config.nested_dropout:
        inputs["token_mask"] = torch.ones(ids.shape, dtype=torch.bool)
    if transformer.has_null:
        inputs["null_mask"] = torch.arange(BATCH) > 0
    if config.text_dim:
        inputs["encoder_hidden_states"] = torch.randn(BATCH, 8, config.text_dim, generator=generator)
        inputs["encoder_attention_mask"] = torch.ones(BATCH, 8, dtype=torch.long)
    if config.pooled_text_dim:
        inputs["pooled_projections"] = torch.randn(BATCH, config.pooled_text_dim, generator=generator)
    if transformer.has_text and transformer.has_null:
        inputs["text_null_mask"] = torch.arange(BATCH) > 0
    text = {name: {1: "text"} for name in ("encoder_hidden_states", "encoder_attention_mask") if name in inputs}
    yield Graph("transformer", Velocity(transformer), inputs, ("velocity",), text)
    yield Graph("vae_decoder", VaeDecoder(vae), {"latents": latents}, ("sample",), bounds=batch_bounds(vae))


def ar_graphs(prior: Any) -> Iterator[Graph]:
    """The first step, and any later one."""
    from hf_vistok.modeling.ar_prior_utils import PreTrainedARPrior

    name = type(prior).__name__
    if type(prior).draw is not PreTrainedARPrior.draw or prior.num_codebooks > 1:
        raise ValueError(f"{name} draws the ids of a step one by one inside it; its graphs are not exported.")
    if any(length != 1 for length in prior.step_lengths(prior.num_tokens)):
        raise ValueError(f"{name} writes several tokens a step, each step its own graph; they are not exported.")
    condition = condition_example(prior)
    with torch.no_grad():
        cache = DynamicCache()
        prior.prefill(dict(condition), None, cache)
        keys, values = keys_and_values(cache)
    outputs = ("logits", "new_keys", "new_values")
    text = text_axes(prior, condition)
    yield Graph("prior_prefill", Prefill(prior), dict(condition), outputs, text)
    # one position more than the condition has: a size that may not vary would be baked in
    past = {name: torch.cat([x, x[:, :, :, :1]], 3) for name, x in (("keys", keys), ("values", values))}
    ids = torch.arange(BATCH)[:, None] % prior.codebook_size
    lengths, bounds = {"keys": {3: "past"}, "values": {3: "past"}, **text}, {"past": (keys.shape[3], None)}
    yield Graph("prior_step", Step(prior), {"token_ids": ids, **past, **condition}, outputs, lengths, bounds)


def text_axes(prior: Any, condition: dict[str, Tensor]) -> dict[str, dict[int, str]]:
    """The axis of a text's length where a prior takes any; those that pad a text themselves take one."""
    if not prior.is_text_conditional:
        return {}
    length = condition["encoder_hidden_states"].shape[1]
    short = condition_example(prior, max(length // 2, 1))
    names = [name for name in condition if name.startswith("encoder_")]
    return {name: {1: "text"} for name in names if short[name].shape[1] != length}


def condition_example(prior: Any, length: int | None = None) -> dict[str, Tensor]:
    """What the prior makes of labels or a text (of `length` tokens, as many as it takes where None)."""
    if not prior.is_text_conditional:
        return prior.condition(class_labels=torch.arange(BATCH) % prior.config.num_classes)
    config, generator = prior.config, torch.Generator().manual_seed(0)
    width, length = getattr(config, "text_dim", None) or config.caption_dim, length or prior.text_length or 16
    states = torch.randn(BATCH, length, width, generator=generator)
    mask = torch.arange(length) < torch.tensor([[length], [length // 2]])
    mask = mask.flip(1) if prior.text_padding_side == "left" else mask
    return prior.condition(encoder_hidden_states=states, encoder_attention_mask=mask.long())


def pipeline_graphs(pipe: Any) -> Iterator[Graph]:
    """The graphs of a pipeline's components."""
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    if "text_encoder" in parts:
        config = parts["text_encoder"].config
        most = getattr(config, "max_length", None) or getattr(config, "max_position_embeddings", None)
        length = min(getattr(parts.get("prior"), "text_length", None) or 16, most or 16)
        ids = torch.arange(BATCH * length).view(BATCH, length) % 7 + 1
        mask = torch.ones_like(ids)
        outputs = ("last_hidden_state", "pooler_output")
        inputs = {"input_ids": ids, "attention_mask": mask}
        lengths = {"input_ids": {1: "text"}, "attention_mask": {1: "text"}}
        bounds = {"text": (1, most)}
        yield Graph("text_encoder", TextEncoder(parts["text_encoder"]), inputs, outputs, lengths, bounds)
    if "prior" in parts:
        yield from graphs_of(parts["prior"])
    if "image_tokenizer" in parts:
        yield from graphs_of(parts["image_tokenizer"])
    elif "vae" in parts and hasattr(parts.get("transformer"), "ids_to_latents"):
        from hf_vistok.modeling.flextok.modeling_flextok import FlexTokModel

        if "image_encoder" in parts:
            whole = FlexTokModel.from_parts(parts["transformer"], parts["vae"], parts["image_encoder"])
            yield from flextok_graphs(whole)
        else:
            yield from flow_graphs(parts["transformer"], parts["vae"])
    else:
        raise ValueError(f"{type(pipe).__name__} has a decoder whose graphs are not exported.")

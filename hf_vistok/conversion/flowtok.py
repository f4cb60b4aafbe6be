"""Original checkpoints of FlowTok: the tokenizer FlowTiTok, and the flow from text to image tokens."""

from dataclasses import replace
from typing import Any

import torch

from .adapter import Adapter, ConversionError, Part, Plan, Preset
from .clip_text import clip_text_part
from .ta_titok import DROPS as TEXT_DROPS
from .ta_titok import TEXT_RENAMES
from .titok import titok_config_fields, titok_plan

SIZES = {  # width, depth, heads
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1152, 28, 16),
    "h": (1280, 36, 20),
}
RENAMES = [
    (r"^context_encoder\.linear\.", "text_vae.proj."),
    (r"^context_encoder\.", "text_vae."),
    (r"\.feed_forward\.ffn_(\d)\.", r".fc\1."),
    (r"\.(norm\d)\.g$", r".\1.weight"),
    (r"\.(norm\d)\.b$", r".\1.bias"),
    (r"\.attn\.W_O\.", ".attn.proj."),
    (r"^context_projector\.", "text_projector."),
    (r"^x_embedder\.", "token_embed."),
    (r"^t_embedder\.mlp\.0\.", "time_embed.fc1."),
    (r"^t_embedder\.mlp\.2\.", "time_embed.fc2."),
    (r"^y_embedder\.embedding_table\.", "null_embed."),
    (r"^blocks\.", "layers."),
    (r"^final_layer\.linear\.", "head.proj."),
    (r"^final_layer\.", "head."),
    (r"\.adaLN_modulation\.1\.", ".modulation.linear."),
]
TOKENIZER_DROPS = {
    **TEXT_DROPS,
    r"(en|de)coder\.positional_embedding\.freqs_(cos|sin)": "rotary tables of one resolution, computed here",
}
FLOW_DROPS = {
    r"pos_embed": "the fixed table of sines and cosines, computed here",
    r"t2t_temperature": "temperature of the contrastive loss; training starts it at log(1 / 0.07)",
    r"open_clip\..*": "the image and text towers of a loss that released models are trained without",
    r"external\.clip_text\.text_projection\.weight": "the model reads the tower's states, not its pooled text",
}


def flow_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of our transformer for the authors' configuration; the sizes stand in the network's name."""
    nnet, arguments = config["nnet"], config["nnet"]["model_args"]
    if arguments.get("learn_sigma", False) or not arguments.get("use_t2i", True):
        raise ConversionError("Only the text-to-image models without learn_sigma have published code.")
    text, dims = arguments["textVAE"], config.get("fixture_overrides", {}).get("flowtok_dims")
    if dims is None:
        size = nnet["name"].lower().rsplit("-", 1)[-1]
        if size not in SIZES:
            raise ConversionError(f"Unknown FlowTok {nnet['name']!r}; sizes: {', '.join(SIZES)}.")
        dims = dict(zip(("hidden_size", "depth", "num_heads"), SIZES[size], strict=True))
    losses, sample = config.get("losses", {}), config.get("sample", {})
    return {
        "num_tokens": dims.get("num_latent_tokens", arguments.get("num_clip_token") or 77),
        "token_size": arguments["channels"],
        "hidden_size": dims["hidden_size"],
        "num_layers": dims["depth"],
        "num_heads": dims["num_heads"],
        "text_embed_dim": arguments["clip_dim"],
        "text_num_layers": text["num_blocks"],
        "text_num_heads": text["num_attention_heads"],
        "text_mlp_dim": text["hidden_dim"],
        "text_dropout": float(text.get("dropout_prob", 0.1)),
        "latents_scale": float(config.get("vq_model", {}).get("scale_factor", 1.0143)),
        "num_inference_steps": sample.get("sample_steps", 20),
        "guidance_scale": float(sample.get("scale", 2.0)),
        "null_probability": float(arguments.get("cfg_indicator", 0.1)),
        "contrastive_weight": float(losses.get("contrastive_loss_weight", 1.0)),
        "kld_weight": float(losses.get("kld_loss_weight", 0.01)),
    }


def _flow_surgery(state: dict[str, Any]) -> dict[str, Any]:
    for name in [name for name in state if ".attn.W_Q." in name]:
        parts = [state.pop(name.replace("W_Q", f"W_{letter}")) for letter in "QKV"]
        state[name.replace("W_Q", "qkv")] = torch.cat(parts)
    weight = state["token_embed.weight"]
    state["log_temperature"] = torch.full((), 1 / 0.07, dtype=weight.dtype, device=weight.device).log()
    return state


class FlowTokAdapter(Adapter):
    """FlowTiTok and FlowTok; both are raw pickles: pass `preset=`."""

    system = "flowtok"

    def recognise(self, config: dict[str, Any]) -> str | None:
        """The flow's `nnet` with a text VAE, or the tokenizer's flat `vq_model`."""
        nnet = config.get("nnet")
        if isinstance(nnet, dict) and "textVAE" in nnet.get("model_args", {}):
            return "flow_generator"
        vq = config.get("vq_model")
        text = isinstance(vq, dict) and {"vit_enc_model_size", "use_rmsnorm"} <= set(vq)
        return "tokenizer" if text else None

    def plan(self, component: str, config: dict[str, Any]) -> Plan:
        """The tokenizer's plan is TiTok's with other blocks; the flow's is a table of names."""
        tower, foreign = clip_text_part(config, projection=False)
        if component == "flow_generator":
            from ..modeling.flowtok.modeling_flowtok_transformer import FlowTokTransformer

            parts = {"transformer": Part(FlowTokTransformer, flow_fields(config)), **tower}
            return Plan(parts, RENAMES, FLOW_DROPS, _flow_surgery, foreign=foreign)
        if component != "tokenizer":
            return super().plan(component, config)
        from ..modeling.flowtok.configuration_flowtok import FlowTiTokConfig
        from ..modeling.flowtok.modeling_flowtok import FlowTiTokModel

        vq = {**config["vq_model"], "quantize_mode": "vae", "is_legacy": False, "finetune_decoder": False}
        nested = {**config, "model": {"vq_model": vq}, "dataset": {"preprocessing": config["dataset"]}}
        text = {name: vq[name] for name in ("text_context_length", "text_embed_dim") if name in vq}
        plan = titok_plan(FlowTiTokModel, FlowTiTokConfig(**titok_config_fields(nested), **text), TOKENIZER_DROPS)
        return replace(plan, parts=plan.parts | tower, renames=[*TEXT_RENAMES, *plan.renames], foreign=foreign)

    def processor(self, component: str, config: dict[str, Any]) -> Any:
        """Shorter side resized (bicubic), centre crop, [0, 1]."""
        from ..modeling.image_processing_utils import ImageTokenizerProcessor

        return ImageTokenizerProcessor.for_size(config["dataset"]["crop_size"]) if component == "tokenizer" else None


def tokenizer_config(size: int) -> dict[str, Any]:
    """The tokenizer's configuration as the authors write it."""
    vq = {
        "token_size": 16,
        "vit_enc_model_size": "base",
        "vit_dec_model_size": "large",
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": 77,
        "is_legacy": False,
        "use_rmsnorm": False,
        "use_swiglu": True,
        "scale_factor": 1.0143,
    }
    return {"vq_model": vq, "dataset": {"crop_size": size, "resize_shorter_edge": size}}


def flow_config(name: str) -> dict[str, Any]:
    """The flow's configuration as the authors write it."""
    text = {"num_blocks": 6, "hidden_dim": 1024, "num_attention_heads": 8, "dropout_prob": 0.1}
    arguments = {"channels": 16, "use_t2i": True, "clip_dim": 768, "cfg_indicator": 0.1, "textVAE": text}
    return {
        "nnet": {"name": name, "model_args": arguments},
        "losses": {"contrastive_loss_weight": 1.0, "kld_loss_weight": 0.01},
        "vq_model": {"scale_factor": 1.0143},
        "sample": {"sample_steps": 20, "scale": 2.0},
    }


REPO = "turkeyju/FlowTok"
FlowTokAdapter.presets = {
    "FlowTok-XL": Preset("flow_generator", flow_config("FlowTok-XL"), REPO, "FlowTok-XL.pth"),
    "FlowTok-H": Preset("flow_generator", flow_config("FlowTok-H"), REPO, "FlowTok-H.pth"),
    "FlowTiTok_512": Preset("tokenizer", tokenizer_config(512), REPO, "FlowTiTok_512.bin"),
    # of the first two training stages; not in the repository's list of files that was seen
    "FlowTiTok_256": Preset("tokenizer", tokenizer_config(256), REPO, "FlowTiTok_256.bin", unverified=True),
}

ADAPTER = FlowTokAdapter()

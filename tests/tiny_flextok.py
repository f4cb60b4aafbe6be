import torch

from hf_vistok.modeling.flextok.configuration_flextok import FlexTokConfig
from hf_vistok.modeling.flextok.modeling_flextok import FlexTokModel
from hf_vistok.modeling.flextok.modeling_flextok_encoder import FlexTokEncoder
from hf_vistok.modeling.flextok.modeling_flextok_linear import FlexTokLinearEncoder
from hf_vistok.modeling.flextok.modeling_flextok_transformer import FlexTokTransformer

from .tiny import Tiny

VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.5,
    "sample_size": 16,
}
ENCODER = {
    "in_channels": 4,
    "sample_size": 8,
    "hidden_size": 32,
    "num_layers": 2,
    "head_dim": 16,
    "num_registers": 8,
    "out_dim": 4,
}
TRANSFORMER = {
    "in_channels": 4,
    "sample_size": 8,
    "hidden_size": 32,
    "num_layers": 2,
    "head_dim": 16,
    "num_tokens": 8,
    "fsq_levels": [4, 4, 3, 2],
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "frequency_dim": 16,
}
GRID = {"num_tokens": 16, "token_layout": "grid", "nested_dropout": False, "modulation_streams": 1}
LINEAR = {"token_layout": "linear", "modulation_streams": 1, "fsq_levels": [5]}
LINEAR_ENCODER = {"in_channels": 4, "sample_size": 8, "num_registers": 8, "out_dim": 1}
LINEAR_ENCODER |= {"level": 5, "num_components": 6, "num_passes": 2}
TEXT = {"text_dim": 12, "pooled_text_dim": 12}
GRADIENT_FREE = {
    r"^vae\.": "the VAE is frozen",
    r"mask_token|null_": "seen only where training drops something",
}


def flextok_config(encoder=None, transformer=None, **fields):
    # of two pictures training might drop both, and the encoder would then learn nothing
    return FlexTokConfig(
        image_size=16,
        encoder_config=encoder if fields.get("encoder_type") == "linear" else {**ENCODER, **(encoder or {})},
        transformer_config={**TRANSFORMER, **(transformer or {})},
        **{"vae_config": VAE, "condition_dropout": 0.0, **fields},
    )


def flextok(encoder=None, transformer=None, **fields):
    return lambda: FlexTokModel(flextok_config(encoder, transformer, **fields)).eval()


def transformer(**options):
    return lambda: FlexTokTransformer(**{**TRANSFORMER, **options}).eval()


def draws(batch, *shape, seed=0):
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    return torch.stack(made)


def text(batch):
    mask = torch.arange(5) < (torch.arange(batch)[:, None] % 3 + 2)
    return {
        "encoder_hidden_states": draws(batch, 5, 12),
        "encoder_attention_mask": mask.long(),
        "pooled_projections": draws(batch, 12, seed=9),
    }


def training(batch):
    return {"noise": draws(batch, 4, 8, 8), "timesteps": torch.linspace(0.2, 0.9, batch)}


def flow_inputs(batch):
    return {
        "hidden_states": draws(batch, 4, 8, 8),
        "timestep": torch.linspace(0.2, 1.0, batch),
        "token_latents": draws(batch, 8, 4).clamp(-1, 1),
        "token_mask": torch.arange(8) < (torch.arange(batch)[:, None] * 3 % 8 + 1),
    }


def build():
    grid = {**GRID, "head_modulation": False, "max_timestep": 1000.0, "token_positions": "none"}
    return {
        "flextok": Tiny(flextok(), forward_kwargs=training, grad_free=GRADIENT_FREE),
        "flextok-grid": Tiny(flextok({"num_registers": 0}, grid), forward_kwargs=training, grad_free=GRADIENT_FREE),
        "flextok-text": Tiny(
            flextok(
                None, {**TEXT, "prediction_type": "sample", "guidance": "cfg"}, alignment_dim=6, alignment_hidden_dim=32
            ),
            decode_kwargs=text,
            forward_kwargs=lambda batch: {**training(batch), **text(batch), "teacher_features": draws(batch, 16, 6)},
            grad_free={**GRADIENT_FREE, r"layers\.1\.": "zero-initialised gates"},
        ),
        "flextok-linear": Tiny(
            flextok(
                LINEAR_ENCODER,
                {**LINEAR, **TEXT, "prediction_type": "sample", "guidance": "cfg"},
                encoder_type="linear",
                timestep_sampling="logit_normal",
                vae_config={**VAE, "scaling_factor": 20.0},  # it predicts latents: those of a fresh VAE are near zero
            ),
            decode_kwargs=text,
            forward_kwargs=lambda batch: {**training(batch), **text(batch)},
            grad_free={**GRADIENT_FREE, r"layers\.": "zero-initialised gates"},
        ),
        "flextok-transformer": Tiny(transformer(), forward_kwargs=flow_inputs, grad_free=GRADIENT_FREE),
        "flextok-linear-encoder": Tiny(
            lambda: FlexTokLinearEncoder(**LINEAR_ENCODER).eval(),
            forward_kwargs=lambda batch: {"hidden_states": draws(batch, 4, 8, 8)},
            skip={
                "training_lowers_the_loss": "it is solved for: digits after the first of a component have no gradient"
            },
        ),
        "flextok-encoder": Tiny(
            lambda: FlexTokEncoder(**ENCODER).eval(),
            forward_kwargs=lambda batch: {"hidden_states": draws(batch, 4, 8, 8)},
        ),
    }

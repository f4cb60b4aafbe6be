import torch

from hf_vistok.modeling.flowtok.configuration_flowtok import FlowTiTokConfig
from hf_vistok.modeling.flowtok.modeling_flowtok import FlowTiTokModel
from hf_vistok.modeling.flowtok.modeling_flowtok_transformer import FlowTokTransformer

from .tiny import Tiny

TOKENIZER = {
    "image_size": 32,
    "num_latent_tokens": 5,
    "token_size": 4,
    "text_context_length": 5,
    "text_embed_dim": 12,
    "encoder_patch_size": 8,
    "encoder_hidden_size": 32,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "decoder_patch_size": 8,
    "decoder_hidden_size": 32,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
}
FLOW = {
    "num_tokens": 5,
    "token_size": 4,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "text_embed_dim": 12,
    "text_num_layers": 1,
    "text_num_heads": 2,
    "text_mlp_dim": 16,
    "projector_dim": 16,
    "num_inference_steps": 2,
}


def draws(batch, *shape, seed=0):
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(batch)]
    return torch.stack(made)


def text(batch):
    return {"text_hidden_states": draws(batch, 5, 12)}


def flow(batch):
    return {
        "hidden_states": draws(batch, 5, 4, seed=7),
        "timestep": torch.linspace(0.2, 0.9, batch),
        "null_indicator": torch.arange(batch) % 2,
    }


def training(batch):
    return {**flow(batch), **text(batch), "text_noise": draws(batch, 5, 4, seed=3)}


def transformer(**options):
    return lambda: FlowTokTransformer(**{**FLOW, **options}).eval()


def build():
    only_losses = {r"text_|log_temperature": "read in a training pass alone"}
    return {
        "flowtitok": Tiny(
            lambda: FlowTiTokModel(FlowTiTokConfig(**TOKENIZER)).eval(), decode_kwargs=text, forward_kwargs=text
        ),
        "flowtok": Tiny(transformer(), forward_kwargs=flow, grad_free=only_losses),
        "flowtok-training": Tiny(
            transformer(),
            forward_kwargs=training,
            skip={"batch_is_one_by_one": "unconditional pictures and the contrastive loss depend on the batch"},
        ),
    }

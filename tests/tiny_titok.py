from hf_vistok.modeling.maskgit.configuration_maskgit import MaskGitPriorConfig
from hf_vistok.modeling.maskgit.modeling_maskgit import MaskGitPrior
from hf_vistok.modeling.maskgit_vqgan.configuration_maskgit_vqgan import MaskGitVQGANConfig
from hf_vistok.modeling.maskgit_vqgan.modeling_maskgit_vqgan import MaskGitVQGANModel
from hf_vistok.modeling.one_d_piece.configuration_one_d_piece import OneDPieceConfig
from hf_vistok.modeling.one_d_piece.modeling_one_d_piece import OneDPieceModel
from hf_vistok.modeling.titok.configuration_titok import TiTokConfig
from hf_vistok.modeling.titok.modeling_titok import TiTokModel

from .tiny import Tiny, grid_targets

SIZES = {
    "image_size": 32,
    "num_latent_tokens": 6,
    "token_size": 4,
    "codebook_size": 24,
    "encoder_patch_size": 8,
    "encoder_hidden_size": 32,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "decoder_patch_size": 8,
    "decoder_hidden_size": 32,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
    "proxy_codebook_size": 16,
    "proxy_channels": 8,
    "pixel_hidden_channels": 32,
    "pixel_channel_mult": [1, 1, 1, 1],
    "pixel_num_res_blocks": 1,
}
PRIOR = {
    "codebook_size": 24,
    "num_image_tokens": 6,
    "num_classes": 5,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def titok(**options):
    return lambda: TiTokModel(TiTokConfig(**{**SIZES, **options})).eval()


def one_d_piece(**options):
    return lambda: OneDPieceModel(OneDPieceConfig(**{**SIZES, **options})).eval()


def maskgit_vqgan(**options):
    sizes = {"image_size": 16, "hidden_channels": 32, "channel_mult": [1, 1, 2], "num_res_blocks": 1}
    config = {**sizes, "latent_channels": 8, "codebook_size": 24, **options}
    return lambda: MaskGitVQGANModel(MaskGitVQGANConfig(**config)).eval()


def maskgit(**options):
    return lambda: MaskGitPrior(MaskGitPriorConfig(**{**PRIOR, **options})).eval()


def build():
    few_steps = {"generate_kwargs": {"num_inference_steps": 3}, "unguided": 0.0}
    return {
        "titok": titok(pixel_head="vqgan", scrambled_latents=True),
        "titok-vq": titok(pixel_head="patch", use_l2_norm=False),
        "titok-kl": titok(pixel_head="patch", quantizer="kl"),
        "titok-fsq": titok(pixel_head="patch", quantizer="fsq", fsq_levels=[4, 3, 2, 2], codebook_size=48),
        "titok-proxy": Tiny(titok(pixel_head="proxy"), forward_kwargs=grid_targets("proxy_token_ids", 16, 16)),
        "one_d_piece": one_d_piece(pixel_head="vqgan", scrambled_latents=True),
        "one_d_piece-patch": one_d_piece(pixel_head="patch", per_image_drop=True),
        "maskgit_vqgan": maskgit_vqgan(),
        "maskgit-bert": Tiny(maskgit(architecture="bert"), **few_steps),
        "maskgit-uvit": Tiny(maskgit(architecture="uvit"), **few_steps),
    }

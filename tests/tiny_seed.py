import torch

from hf_vistok.modeling.image_processing_utils import ImageTokenizerProcessor
from hf_vistok.modeling.seed.configuration_seed import SeedConfig
from hf_vistok.modeling.seed.modeling_seed import SeedModel

from .tiny import Tiny

SIZES = {
    "image_size": 28,
    "vision_hidden_size": 32,
    "vision_num_layers": 1,
    "vision_num_heads": 2,
    "vision_patch_size": 14,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_query_tokens": 6,
    "codebook_size": 24,
    "token_size": 4,
    "decode_num_layers": 1,
    "image_embed_dim": 12,
}


def seed(**options):
    return lambda: SeedModel(SeedConfig(**{**SIZES, **options})).eval()


def teacher(batch):
    draws = [torch.randn(12, generator=torch.Generator().manual_seed(i)) for i in range(batch)]
    return {"image_embeds": torch.stack(draws)}


def processor():
    config = SeedConfig(**SIZES)
    return ImageTokenizerProcessor.for_size(
        config.image_size,
        size={"height": config.image_size, "width": config.image_size},
        do_center_crop=False,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def build():
    return {
        "seed": Tiny(seed(), forward_kwargs=teacher, processor=processor),
        "seed-qformer": Tiny(
            seed(head="qformer", freeze_encoder=False, causal_queries=False),
            forward_kwargs=teacher,
            processor=processor,
        ),
    }

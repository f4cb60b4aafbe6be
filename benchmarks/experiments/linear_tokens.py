"""
Linear tokens before any training (`FlexTokLinearEncoder`): how many digits a component should have.

    hf-vistok data emoji
    python -m benchmarks.experiments.linear_tokens

The VAE is that of hf-vistok/emoji-64. Held-out pictures are drawn from the coarse latents of their first tokens alone.
"""

import argparse

import numpy as np
import torch

from hf_vistok import AutoImageTokenizer
from hf_vistok.data.sources import open_source
from hf_vistok.evaluation.reconstruction import doubling_lengths, to_pixels
from hf_vistok.modeling.flextok.modeling_flextok import FlexTokModel
from hf_vistok.modeling.layers.vae import scale_latents, vae_decode
from hf_vistok.training.latents import LatentSource, solve_linear_tokens


def psnr(model: FlexTokModel, latents: torch.Tensor, pixels: torch.Tensor) -> float:
    """Mean over pictures in dB."""
    errors = []
    for part, real in zip(latents.split(64), pixels.split(64), strict=True):
        fake = model.denormalize_pixels(vae_decode(model.vae, part)).clamp(0, 1)
        errors.append((fake - real).square().mean((1, 2, 3)))
    return float(-10 * torch.log10(torch.cat(errors)).mean())


@torch.no_grad()
def main() -> None:
    """Prints a row of PSNR by number of tokens for each number of digits and each scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/emoji-64", help="folder of the emoji set")
    options = parser.parse_args()
    shipped = AutoImageTokenizer.from_pretrained("hf-vistok/emoji-64")
    size, vae = shipped.config.image_size, shipped.vae
    held_out = open_source("emoji", options.data, size, split="names")
    known = LatentSource(open_source("emoji", options.data, size), vae, mirror=True).latents
    known = scale_latents(vae, torch.from_numpy(known.reshape(-1, *known.shape[2:])))
    pixels = to_pixels(held_out.take(np.arange(len(held_out))).images)
    latents = scale_latents(vae, torch.from_numpy(LatentSource(held_out, vae, mirror=False).latents[:, 0]))
    print(f"the VAE alone: {psnr(shipped, latents, pixels):.2f} dB")
    print("| digits | scale |", " | ".join(map(str, doubling_lengths(shipped))), "|")
    for passes, scale in ((1, 0.6), (3, 0.3), (3, 0.35), (3, 0.4), (3, 0.5)):
        shipped.config.encoder_config["num_passes"] = passes
        model = FlexTokModel(shipped.config).eval()
        model.vae.load_state_dict(vae.state_dict())
        solve_linear_tokens(model, known, scale)
        codes = model.encode_latents(latents).latents
        coarse = (model.transformer.token_map(codes[:, :k], None, None)[0] for k in doubling_lengths(model))
        row = " | ".join(f"{psnr(model, picture, pixels):.2f}" for picture in coarse)
        print(f"| {passes} | {scale} | {row} |", flush=True)


if __name__ == "__main__":
    main()

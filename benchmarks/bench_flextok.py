"""
The flow decoder of a full-size FlexTok with random weights: pictures of different lengths in one forward against one
by one, and guidance in one forward of 2B against two.

    python -m benchmarks.bench_flextok --model flextok_d12_d12_in1k --lengths 1 16 64 256 --threads 1
    python -m benchmarks.bench_flextok --model small --lengths 1 2 4 8 16 32 --steps 8

All ways are measured in turns in one process; a ratio above 1 means that ours is faster. The VAE is left out: it is
the same in all ways.
"""

import argparse

import torch

from hf_vistok.conversion.adapter import find_preset
from hf_vistok.modeling.flextok.modeling_flextok_transformer import FlexTokTransformer
from hf_vistok.modeling.layers.flow import sample_flow

from .measure import interleaved, peak_memory, ratio

SMALL = {"sample_size": 8, "num_tokens": 32, "hidden_size": 256, "num_layers": 6, "fsq_levels": [8, 5, 5, 5]}


def config_of(name: str) -> dict:
    """Of a preset, or "small": the size of a chain that ships inside the package."""
    if name == "small":
        return SMALL
    adapter, preset = find_preset(name)
    return next(iter(adapter.plan(preset.component, preset.config).parts.values())).config.transformer_config


def build(name: str) -> FlexTokTransformer:
    config = config_of(name)
    torch.manual_seed(0)
    model = FlexTokTransformer(**config).eval()
    for parameter in model.parameters():  # gates start at zero: the result would not depend on the blocks
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def inputs_of(model, lengths):
    generator, config = torch.Generator().manual_seed(1), model.config
    count = len(lengths)
    side = (count, config.in_channels, config.sample_size, config.sample_size)
    ids = torch.randint(model.codebook_size, (count, model.num_tokens), generator=generator)
    mask = torch.arange(model.num_tokens) < torch.tensor(lengths)[:, None]
    return torch.randn(side, generator=generator), model.ids_to_latents(ids), mask


def ways_of(model, lengths, steps):
    noise, tokens, mask = inputs_of(model, lengths)
    plain, guided = model.make_guidance(1.0), model.make_guidance(7.5)

    def together(guidance=plain):
        return model.sample_latents(noise, tokens, mask, num_inference_steps=steps, guidance=guidance)

    def one_by_one():
        rows = [slice(i, i + 1) for i in range(len(lengths))]
        return torch.cat(
            [
                model.sample_latents(noise[row], tokens[row, :length], num_inference_steps=steps, guidance=plain)
                for row, length in zip(rows, lengths, strict=True)
            ]
        )

    def two_passes():
        null = torch.ones(len(lengths), dtype=torch.bool)

        def velocity(x, t, wanted):
            return torch.cat([model(x, t, tokens, mask).sample, model(x, t, tokens, mask, null).sample])

        return sample_flow(velocity, noise, steps, guided)

    return {
        "mixed lengths together": together,
        "one by one": one_by_one,
        "guided, one forward": lambda: together(guided),
        "guided, two forwards": two_passes,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flextok_d12_d12_in1k", help="a preset, or small")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a shared machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        model = build(options.model)
        ways = ways_of(model, options.lengths, options.steps)
        error = (ways["mixed lengths together"]() - ways["one by one"]()).abs().max().item()
        assert error < 1e-3, f"the two ways differ by {error:.2g}"
        times = interleaved(ways, options.repeats, options.clock)
    print(
        f"{options.model} decoder, float32, {options.threads} thread(s), {options.clock} clock, "
        f"lengths {options.lengths}"
    )
    for slow, fast in (("one by one", "mixed lengths together"), ("guided, two forwards", "guided, one forward")):
        print(f"{slow} / {fast}: {ratio(times, slow, fast):.2f}  ({min(times[slow]):.2f} s, {min(times[fast]):.2f} s)")
    memory = [peak_memory(ways[name]) / 2**20 for name in ("mixed lengths together", "one by one")]
    print(f"peak memory together {memory[0]:.0f} MiB, one by one {memory[1]:.0f} MiB")


if __name__ == "__main__":
    main()

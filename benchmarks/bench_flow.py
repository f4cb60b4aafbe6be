"""
Guided sampling of a latent flow transformer with random weights, as ratios to the straightforward loop.

    python -m benchmarks.bench_flow --size B --batch 1 4 --threads 1 --clock cpu

The baseline ("two passes") is the same network with attention written out (scores, softmax, product) and one forward
for each half of guidance; "one pass" the same with a batch of 2B. All take the same steps from the same noise, and
their latents are compared. A ratio above 1 means that ours is faster.
"""

import argparse
from contextlib import contextmanager
from types import SimpleNamespace

import torch

from hf_vistok.conversion.adapter import find_preset
from hf_vistok.conversion.build import plan_of
from hf_vistok.conversion.latent_flow import SIZES
from hf_vistok.modeling.layers.attention import Attention
from hf_vistok.modeling.layers.flow_sampling import integrate

from .measure import compare_guided, matmul_call


def build(preset, size):
    """A published generator's network with random weights, at another of the papers' sizes where one is named."""
    adapter, found = find_preset(preset)
    part = next(iter(plan_of(adapter, found.component, found.config).parts.values()))
    fields = dict(part.config)
    if size is not None:
        fields |= dict(zip(("hidden_size", "num_layers", "num_heads"), SIZES[size], strict=True))
    torch.manual_seed(0)
    model = part.model(**fields).eval()
    for parameter in model.parameters():  # gates that start at zero would hide differences
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@contextmanager
def eager(model):
    """Attention of a model written out."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    before = [layer.config for layer in layers]
    for layer in layers:
        layer.config = SimpleNamespace(_attn_implementation="eager")
    try:
        yield
    finally:
        for layer, config in zip(layers, before, strict=True):
            layer.config = config


def straightforward(model, noise, labels, steps, scale, together):
    """The loop as one would write it first."""
    null = torch.full_like(labels, model.null_class)
    count = model.config.guidance_channels or model.config.in_channels

    def say(x, t, labels):
        return model(x, torch.full((len(x),), t), labels, return_dict=False)[0]

    def velocity(x, t):
        if together:
            cond, uncond = say(torch.cat([x, x]), t, torch.cat([labels, null])).chunk(2)
        else:
            cond, uncond = say(x, t, labels), say(x, t, null)
        guided = uncond[:, :count] + scale * (cond[:, :count] - uncond[:, :count])
        return torch.cat([guided, cond[:, count:]], 1)

    with eager(model):
        return integrate(velocity, noise, model.sample_times(steps, "euler"))


def measure(model, batch, options):
    torch.manual_seed(1)
    config = model.config
    labels = torch.randint(config.num_classes, (batch,))
    noise = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
    points = options.steps + (config.grid != "steps")  # the published grids count points
    scale, common = 4.0, (noise, labels, points)
    settings = {"num_inference_steps": points, "guidance_scale": scale, "guidance_intervals": [], "sampler": "euler"}
    ways = {
        "ours": lambda: model.sample_latents(noise, labels, **settings),
        "two passes": lambda: straightforward(model, *common, scale, False),
        "one pass": lambda: straightforward(model, *common, scale, True),
    }
    error = (ways["ours"]() - ways["two passes"]()).abs().max().item()
    assert error < 1e-2, f"latents differ by {error:.2g}"
    rows = 2 * batch * (config.sample_size // config.patch_size) ** 2
    rate = matmul_call(rows, config.hidden_size, int(config.hidden_size * config.mlp_ratio))
    compare_guided(f"batch {batch:<3}", ways, rate, batch, options, f"  max error {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LightningDiT-XL-1_vavae_f16d32", help="name of a preset of a flow")
    parser.add_argument("--size", choices=list(SIZES), help="another size of that network")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a shared machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        model = build(options.model, options.size)
        name = options.model if options.size is None else f"{options.model} at size {options.size}"
        print(f"{name}, {options.steps} steps, float32, {options.threads} thread(s), {options.clock} clock, ", end="")
        print(f"torch {torch.__version__}", flush=True)
        for batch in options.batch:
            measure(model, batch, options)


if __name__ == "__main__":
    main()

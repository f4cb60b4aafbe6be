"""
Encode and decode of a full-size TiTok with random weights, as ratios to a baseline on `nn.MultiheadAttention`.

    python -m benchmarks.bench_tokenizer --model tokenizer_titok_l32_imagenet --batch 1 8 --threads 1

All ways are measured in turns in one process; a ratio above 1 means that ours is faster. `--prefix` also decodes the
first tokens only (One-D-Piece), against the baseline at full length.
"""

import argparse

import torch

from hf_vistok.conversion.adapter import find_preset

from .baseline_titok import BaselineTiTok
from .measure import flops, interleaved, matmul_call, peak_memory, ratio


def build(name):
    adapter, preset = find_preset(name)
    part = next(iter(adapter.plan(preset.component, preset.config).parts.values()))
    torch.manual_seed(0)
    return part.model(part.config).eval()


def check(model, baseline, pixels, latents):
    """The baseline computes the same: otherwise its time says nothing."""
    ids = model.encode(pixels).token_ids.flatten()
    agree = (baseline.encode(pixels) == ids).float().mean().item()
    assert agree > 0.98, f"only {agree:.3f} of the ids agree"
    expected = baseline.decode(latents)
    error = (model.decode(latents).sample - expected).abs().max() / expected.abs().max()
    assert error < 1e-3, f"samples differ by {error:.2g}"


def report(title, ways, options, work, rate_call, rate_flops, batch):
    times = interleaved({**ways, "matmul": rate_call}, options.repeats, options.clock)
    rate = rate_flops / min(times["matmul"])
    line = f"{title:<22} baseline/ours {ratio(times, 'baseline', 'ours'):.3f}"
    if "compiled" in ways:
        line += f"  compiled baseline/ours {ratio(times, 'compiled', 'ours'):.3f}"
        line += f"  ours compiled/ours {ratio(times, 'ours compiled', 'ours'):.3f}"
    achieved = work / min(times["ours"])
    line += f"  images/s {batch / min(times['ours']):.3f}"
    line += f"  {achieved / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s = {achieved / rate:.0%} of matmul"
    print(line, flush=True)


def measure(model, baseline, batch, options):
    config = model.config
    torch.manual_seed(1)
    pixels = torch.rand(batch, 3, config.image_size, config.image_size)
    latents = model.encode(pixels).latents
    check(model, baseline, pixels, latents)
    positions = (config.image_size // config.encoder_patch_size) ** 2 + 1 + config.num_latent_tokens
    rate_call, rate_flops = matmul_call(batch * positions, config.decoder_hidden_size, 4 * config.decoder_hidden_size)
    pairs = {
        "encode": (lambda: model.encode(pixels).token_ids, lambda: baseline.encode(pixels)),
        "decode": (lambda: model.decode(latents).sample, lambda: baseline.decode(latents)),
    }
    for name, (ours, theirs) in pairs.items():
        if name not in options.parts:
            continue
        ways = {"ours": ours, "baseline": theirs}
        if options.compile:
            ways["compiled"], ways["ours compiled"] = torch.compile(theirs), torch.compile(ours)
        report(f"{name} batch {batch}", ways, options, flops(ours), rate_call, rate_flops, batch)
        memory = [peak_memory(way) / 2**20 for way in (ours, theirs)]
        print(f"{'':<22} peak memory {memory[0]:.0f} MiB, baseline {memory[1]:.0f} MiB", flush=True)
    for count in options.prefix:
        short = latents[:, :count]
        ways = {"ours": lambda short=short: model.decode(short).sample, "baseline": lambda: baseline.decode(latents)}
        title = f"decode {count} of {config.num_latent_tokens}, batch {batch}"
        report(title, ways, options, flops(ways["ours"]), rate_call, rate_flops, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tokenizer_titok_l32_imagenet", help="name of a preset with a VQ-GAN head")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--parts", nargs="+", choices=("encode", "decode"), default=["encode", "decode"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a shared machine")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of both (minutes)")
    parser.add_argument("--prefix", type=int, nargs="*", default=[], help="decode only so many first tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        model = build(options.model)
        print(
            f"{options.model}, float32, {options.threads} thread(s), {options.clock} clock, torch {torch.__version__}"
        )
        for batch in options.batch:
            measure(model, BaselineTiTok(model), batch, options)


if __name__ == "__main__":
    main()

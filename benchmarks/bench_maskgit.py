"""
Masked generation with a full-size prior and random weights, as ratios to a baseline on `nn.MultiheadAttention`.

    python -m benchmarks.bench_maskgit --model generator_titok_l32_imagenet --batch 1 8 --threads 1

"two passes" is the baseline with one forward for each half of guidance, "one pass" the same with a batch of 2B. A ratio
above 1 means that ours is faster.
"""

import argparse

import torch

from .baseline_titok import BaselinePrior
from .bench_tokenizer import build
from .measure import flops, interleaved, matmul_call, peak_memory, ratio


def baseline_generate(baseline, sampler, labels, draws, together):
    """The loop of `generate` with the baseline's logits."""
    prior = baseline.prior
    ids = torch.full((len(labels), prior.config.num_image_tokens), prior.mask_token_id)
    null = torch.full_like(labels, prior.config.num_classes)

    def predict(guided, ids):
        if not guided:
            return baseline.predict(ids, labels)
        if together:
            return baseline.predict(torch.cat([ids, ids]), torch.cat([labels, null]))
        return torch.cat([baseline.predict(ids, labels), baseline.predict(ids, null)])

    for step in range(sampler.num_inference_steps):
        logits = sampler.guided_logits(lambda guided, ids=ids: predict(guided, ids), step)
        ids = sampler.step(logits, step, ids, prior.mask_token_id, draws=(draws[0][step], draws[1][step]))
    return ids


def measure(prior, baseline, batch, options):
    torch.manual_seed(1)
    labels = torch.randint(prior.config.num_classes, (batch,))
    sampler = prior.sampler(num_inference_steps=options.steps)
    shape = (options.steps, batch, prior.config.num_image_tokens)
    draws = torch.rand(*shape, prior.codebook_size), torch.rand(shape)
    ways = {
        "ours": lambda: prior.generate(labels, sampler=sampler, draws=draws).token_ids,
        "two passes": lambda: baseline_generate(baseline, sampler, labels, draws, together=False),
        "one pass": lambda: baseline_generate(baseline, sampler, labels, draws, together=True),
    }
    agree = (ways["ours"]() == ways["two passes"]()).float().mean().item()
    assert agree > 0.95, f"only {agree:.3f} of the ids agree"
    rows = 2 * batch * (prior.config.num_image_tokens + 1)
    rate_call, rate_flops = matmul_call(rows, prior.config.hidden_size, prior.config.intermediate_size)
    work = flops(ways["ours"])
    times = interleaved({**ways, "matmul": rate_call}, options.repeats, options.clock)
    rate, achieved = rate_flops / min(times["matmul"]), work / min(times["ours"])
    print(
        f"generate batch {batch:<3} two passes/ours {ratio(times, 'two passes', 'ours'):.3f}"
        f"  one pass/ours {ratio(times, 'one pass', 'ours'):.3f}  images/s {batch / min(times['ours']):.3f}"
        f"  {achieved / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s = {achieved / rate:.0%} of matmul",
        flush=True,
    )
    memory = [peak_memory(ways[name]) / 2**20 for name in ("ours", "two passes")]
    print(f"{'':<22} peak memory {memory[0]:.0f} MiB, baseline {memory[1]:.0f} MiB", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="generator_titok_l32_imagenet", help="name of a preset of a BERT prior")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a shared machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        prior = build(options.model)
        print(
            f"{options.model}, float32, {options.threads} thread(s), {options.clock} clock, torch {torch.__version__}"
        )
        baseline = BaselinePrior(prior).eval()
        for batch in options.batch:
            measure(prior, baseline, batch, options)


if __name__ == "__main__":
    main()

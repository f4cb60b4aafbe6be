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
from .measure import compare_guided, matmul_call


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
    rate = matmul_call(rows, prior.config.hidden_size, prior.config.intermediate_size)
    compare_guided(f"generate batch {batch:<3}", ways, rate, batch, options)


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

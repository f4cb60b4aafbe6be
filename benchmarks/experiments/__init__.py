"""
Effects that the papers report, at a size that a laptop trains in minutes.

    python -m benchmarks.experiments.tail_drop
    python -m benchmarks.experiments.codebook_use
    python -m benchmarks.experiments.nested_dropout
    python -m benchmarks.experiments.guidance

Each makes its own data, trains through `hf_vistok.training`, and prints a table; `--output` keeps runs and table.
"""

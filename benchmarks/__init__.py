"""Speed and memory: against transformers in PyTorch, against length, within a step, on TPU slices.

    python -m benchmarks.compare    ratios to transformers' Llama, each process by turns
    python -m benchmarks.length     time to 32k tokens, compiled memory to 128k, exponents
    python -m benchmarks.profile    where the time of one training step goes
    python -m benchmarks.scaling    docs/scaling.md: what fits on which TPU slice, none present

The first three take --threads=N and --out=DIR (default docs/results/benchmarks). Run them from the
checkout.
"""

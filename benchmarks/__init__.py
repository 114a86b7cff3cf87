"""Speed and memory, measured: against transformers in PyTorch, against length, and within a step.

    python -m benchmarks.compare    ratios to transformers' Llama, each process by turns
    python -m benchmarks.length     time to 32k tokens, compiled memory to 128k, exponents
    python -m benchmarks.profile    where the time of one training step goes

All take --threads=N and --out=DIR (default docs/results/benchmarks). Run from the checkout.
"""

"""What docs/scaling.md compiles: models, lengths, slices and meshes."""

from functools import partial
from pathlib import Path

from longrope_jax.aot.workload import Workload

ROOT = Path(__file__).parents[1]
TOKENS = 2**22  # of a training step over all chips, the paper's (2309.16039 section 2.1)


def _workload(program, model, length, topology, *, remat="full", context="all_gather", **axes):
    mesh = tuple(axes.items())
    return Workload(program, f"llama2_long_{model}", length, topology, mesh, remat, context)


train, prefill, decode = (partial(_workload, name) for name in ("train", "prefill", "decode"))

# The mesh of each slice is the one that fits best of those tried; slices too small are kept, so
# that the table shows the compiler's refusal.
WORKLOADS = (
    train("7b", 32_768, "v5p:4x4x4", fsdp=64),
    prefill("7b", 32_768, "v5p:4x4x4", data=8, tensor=8),
    decode("7b", 32_768, "v5p:4x4x4", data=8, tensor=8),
    train("7b", 32_768, "v5p:2x2x1", fsdp=4),
    train("7b", 32_768, "v5e:4x4", fsdp=4, tensor=4),
    train("7b", 32_768, "v5e:2x4", tensor=8),
    prefill("7b", 32_768, "v5e:4x4", data=2, tensor=8),
    decode("7b", 32_768, "v5e:4x4", data=2, tensor=8),
    train("7b", 32_768, "v6e:2x4", fsdp=2, tensor=4),
    train("7b", 32_768, "v6e:2x2", tensor=4),
    prefill("7b", 32_768, "v6e:2x4", data=2, tensor=4),
    decode("7b", 32_768, "v6e:2x4", data=2, tensor=4),
    train("13b", 32_768, "v5p:2x2x1", fsdp=4),
    train("13b", 32_768, "v5e:4x8", fsdp=4, tensor=8),
    train("13b", 32_768, "v5e:4x4", fsdp=2, tensor=8),
    prefill("13b", 32_768, "v5p:2x2x1", tensor=4),
    decode("13b", 32_768, "v5p:2x2x1", tensor=4),
    prefill("13b", 32_768, "v5e:4x8", data=4, tensor=8),
    decode("13b", 32_768, "v5e:4x8", data=4, tensor=8),
    train("13b", 32_768, "v6e:4x4", fsdp=4, tensor=4),
    train("13b", 32_768, "v6e:2x4", tensor=8),
    train("34b", 16_384, "v5p:2x2x2", tensor=8),
    train("34b", 16_384, "v5p:2x2x2", fsdp=2, tensor=4),
    train("34b", 16_384, "v5p:2x2x2", fsdp=8),
    train("34b", 16_384, "v5p:2x2x1", tensor=4),
    train("34b", 16_384, "v5e:8x8", fsdp=8, tensor=8),
    train("34b", 16_384, "v5e:4x8", fsdp=4, tensor=8),
    prefill("34b", 16_384, "v5p:2x2x2", tensor=8),
    decode("34b", 16_384, "v5p:2x2x2", tensor=8),
    prefill("34b", 16_384, "v5e:8x8", data=8, tensor=8),
    decode("34b", 16_384, "v5e:8x8", data=8, tensor=8),
    train("34b", 16_384, "v6e:4x8", fsdp=4, tensor=8),
    train("34b", 16_384, "v6e:4x4", fsdp=2, tensor=8),
    train("70b", 16_384, "v5p:2x2x4", sequence=2, tensor=8),
    train("70b", 16_384, "v5p:2x2x4", fsdp=2, tensor=8),
    train("70b", 16_384, "v5p:2x2x4", fsdp=16),
    train("70b", 16_384, "v5p:2x2x2", tensor=8),
    train("70b", 16_384, "v5e:8x16", fsdp=16, tensor=8),
    train("70b", 16_384, "v5e:8x8", fsdp=8, tensor=8),
    prefill("70b", 16_384, "v5p:2x2x4", data=2, tensor=8),
    decode("70b", 16_384, "v5p:2x2x4", data=2, tensor=8),
    prefill("70b", 16_384, "v5e:8x16", data=8, fsdp=2, tensor=8),
    decode("70b", 16_384, "v5e:8x16", data=8, fsdp=2, tensor=8),
    train("70b", 16_384, "v6e:8x8", fsdp=8, tensor=8),
    train("70b", 16_384, "v6e:4x8", fsdp=4, tensor=8),
    # Lengths for ring attention.
    train("7b", 131_072, "v5p:4x4x4", fsdp=8, sequence=8, context="ring"),
    train("7b", 1_048_576, "v5p:4x4x4", sequence=64, context="ring"),
    # Other ways to divide and to recompute.
    train("7b", 32_768, "v5p:4x4x4", fsdp=64, remat="attention"),
    train("7b", 32_768, "v5p:4x4x4", fsdp=16, tensor=4, remat="attention"),
    train("7b", 32_768, "v5p:4x4x4", fsdp=16, tensor=4, remat="linear"),
    train("7b", 32_768, "v5e:4x4", fsdp=4, sequence=4),
    train("13b", 32_768, "v5e:4x8", fsdp=4, sequence=8),
)

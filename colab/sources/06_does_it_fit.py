# %% [markdown]
# # Does it fit?
#
# The real training step (forward, backward, AdamW) is compiled for a TPU slice that nobody here has: the compiler, libtpu, needs no TPU. Its verdict on memory is final; times are bounds at the chips' peak rates. 7 minutes on 2 CPU cores, beside other work.

# %%
if importlib.util.find_spec("libtpu") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", ".[aot]"], check=True)
from longrope_jax.aot import command
from longrope_jax.aot.workload import Workload

# %% [markdown]
# ## Llama 2 7B at 32,768 tokens, on three slices
# A slice is named as libtpu names it, a mesh says which axis its chips divide: parameters (fsdp), heads (tensor), tokens (sequence). Each step has the same 4,194,304 tokens; what does not fit at once is accumulated.

# %%
MODEL, LENGTH, TOKENS = ("smollm2_135m", 2_048, 2**16) if TINY else ("llama2_7b", 32_768, 2**22)
SLICES = {"v5e:2x2": "fsdp=4"} if TINY else {
    "v5p:4x4x4": "fsdp=64", "v5e:4x4": "fsdp=4,tensor=4", "v5e:2x4": "tensor=8"
}
works = [
    Workload("train", MODEL, LENGTH, where, command.read_mesh(mesh)) for where, mesh in SLICES.items()
]
found = command.fits(works, TOKENS)

# %%
print(command.report(found))

# %% [markdown]
# ## How to read it
# `peak memory` is per chip, of what its line of the head offers; `computed / model's FLOPs` above 1 is what rematerialisation computes again; `limited by` names what binds the bound. The same from a shell, with prefill and decode: `longrope fits llama2_7b --length 32768 --topology v5p:4x4x4`. More slices, 7B to 70B: `docs/scaling.md`.

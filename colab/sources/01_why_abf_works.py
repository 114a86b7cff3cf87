# %% [markdown]
# # Why an adjusted base frequency works
#
# RoPE turns pairs of features by an angle, position times frequency. Llama 2 Long reads longer texts after one change: the base of the frequencies grows from 10,000 to 500,000 (ABF). This notebook shows what that does. It needs no model: two minutes on a CPU.

# %% [markdown]
# ## Scores decay with distance, and ABF delays it
# The score of an all-ones query and key (the paper's Figure 4). Stock RoPE falls below zero within the text.

# %%
from longrope_jax import plot, rotary
from longrope_jax.analysis import base_bound, decay, granularity
import numpy as np

plot.decay(["rope", "pi:factor=8", "abf", "xpos_abf"], length=32_768)

# %%
distances = np.arange(32_384)
for method in ["rope", "pi:factor=8", "abf", "xpos_abf"]:
    scores = decay.score(rotary.parse(method), distances, head_dim=128)
    print(f"{method:12} first negative score at {decay.first_negative(scores)}")

# %% [markdown]
# ## Try a base
# In Colab this is a slider; anywhere, change the number and run the cell.

# %%
base_log10 = 5.7  # @param {type:"slider", min:4, max:8, step:0.1}
plot.decay(["rope", f"rope:base={10**base_log10:.0f}"], length=32_768)

# %% [markdown]
# ## Which pairs have been seen in full
# A pair below the line never completes a turn in a training length of 4,096 tokens: beyond it the model meets angles that it never saw. PI slows every pair alike, ABF the slow ones.

# %%
plot.wavelengths(["rope", "pi:factor=8", "abf"], length=32_768, trained_length=4_096)

# %% [markdown]
# ## The helix (Figure 8)
# PI brings neighbours together; ABF leaves them apart and brings the turns together.

# %%
plot.helix()

# %% [markdown]
# ## Granularity
# How far apart neighbouring positions stay, as the mean sine of their angles: ABF keeps most of it.

# %%
for method in ["rope", "abf", "pi:factor=4", "pi:factor=8"]:
    print(f"{method:12} {granularity.mean_sine(rotary.parse(method), head_dim=128):.4f}")

# %% [markdown]
# ## Which bases does a length allow?
# The criterion of 2405.14591: the curve above must not turn negative within the length. The bases that meet it are intervals, not everything above a smallest one.

# %%
length = 512 if TINY else 1_024
for interval in base_bound.intervals(length, head_dim=128, above=1_000):
    print(f"{length:,} tokens: bases from {interval.low:,.0f} to {interval.high:,.0f}")

# %% [markdown]
# ## And trained models?
# The curves are of all-ones vectors. The heads of a small trained model order the methods otherwise (`docs/results/trained_heads`): the picture is an intuition, not a proof. Every claim with its status: `docs/claims.md`.

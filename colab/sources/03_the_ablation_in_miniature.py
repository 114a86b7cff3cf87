# %% [markdown]
# # The ablation in miniature
#
# The base-frequency study of Llama 2 Long, small enough for this runtime: one Llama is pretrained on short windows until it can do what it is asked, then continued at 8 times the length under RoPE, PI, ABF and xPos ABF, with the same data and budget. Hypotheses stand in the config, written before any run, and each has gates: where the study could not have seen an effect, the verdict is "not testable here". A budget of 10 minutes decides how many rows and seeds fit; with reading the text, compiling and drawing, about 12 minutes on 2 CPU cores.

# %%
from configs.base_frequency_ablation import get_config
from experiments import base_frequency_ablation as study

PRESET = "tiny" if TINY else "cpu" if jax.default_backend() == "cpu" else "colab"
config, folder = get_config(PRESET), pathlib.Path("runs/miniature")
for name, row in config.rows.items():
    print(f"{name:10} {row.method}")

# %% [markdown]
# ## Run it
# Killed at any moment, the cell goes on where it was when it is run again; run a second time, it only draws.

# %%
report = study.main(config, folder, command=f"colab, preset {PRESET}")

# %% [markdown]
# ## What came out
# Each sentence is computed from the run.

# %%
print(*report.claims, sep="\n\n")

# %%
from IPython.display import Image, display

display(Image(folder / "retrieval_by_length.png", width=650))

# %% [markdown]
# All tables with their intervals are in `runs/miniature/report.html`. A few hundred steps of a small model show the mechanism; they do not settle a difference of 0.003 nats. The overnight study, two sizes and two texts: `experiments/base_frequency_ablation.py`.

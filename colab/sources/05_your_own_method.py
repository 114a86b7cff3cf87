# %% [markdown]
# # Your own method
#
# A rotary method is a frozen dataclass with one function. One cell defines it; then it has a panel of the atlas, its properties measured, a text that every command and config takes, and a row in a small study beside RoPE and RoPE with a larger base, all trained and measured by one compiled program. 2 minutes on 2 CPU cores.

# %% [markdown]
# ## The method
# Edit this cell. The example lets pairs stand still that never complete a turn within the trained length, so that no angle of theirs is new beyond it.

# %%
import dataclasses
import numpy as np
from longrope_jax import plot, rotary

@rotary.register("mine")
@dataclasses.dataclass(frozen=True)
class Mine:
    """Mine: theta_j = base^(-2j/H), and 0 where a turn takes more than original_length tokens."""

    base: float = 10_000.0
    original_length: float = 4_096

    def frequencies(self, *, head_dim: int, seq_len: int) -> rotary.Frequencies:
        theta = rotary.rope_inv_freq(self.base, head_dim)
        return rotary.Frequencies(np.where(theta * self.original_length < 2 * np.pi, 0.0, theta))

# %% [markdown]
# ## Its panel
# Left: the turns of each pair within the trained length (pairs at rest are left out). Right: the score of all-ones vectors.

# %%
plot.panel("mine", length=32_768, trained_length=4_096)

# %% [markdown]
# ## Its properties
# Measured, not promised. A "no" is no error: it says what the method is.

# %%
print(*rotary.properties("mine", head_dim=128, seq_len=32_768), sep="\n")

# %% [markdown]
# ## Its row in a small study
# `docs/examples/two_methods.py` is a whole study in 100 lines: small Llamas on Shakespeare's plays, trained at 256 bytes and measured at 512 on plays that they never saw. Here it gets three rows. A method reaches the compiled program as data, so one training program serves all of them: compilations are counted.

# %%
import shutil
from docs.examples import two_methods

config, programs = two_methods.get_config(), []
config.rows = {"RoPE": "rope:base=625", "larger base": "rope:base=31_250", "mine": "mine:base=625,original_length=256"}
config.steps, config.seeds = (4, 1) if TINY else (config.steps, 2)
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name="", **more: "backend_compile" in event and programs.append(fun_name)
)
folder = pathlib.Path("runs/your_own_method")
shutil.rmtree(folder, ignore_errors=True)  # else what is done is not done again
report = two_methods.main(config, folder)

# %%
rows = len(config.rows) * config.seeds
print(f"training programs compiled for {rows} trainings: {programs.count('jit(several)')}")

# %%
from IPython.display import Image
Image(folder / "loss_by_position.png", width=600)

# %% [markdown]
# Trained at 256 bytes: what lies beyond position 256 is extrapolation. Two seeds on a toy say little: a study that may claim something has gates, intervals and a control, see `experiments/base_frequency_ablation.py`. To keep the method, put it into a file and follow CONTRIBUTING.md: then its page, its exactness and its round trips are tested like those of every other.

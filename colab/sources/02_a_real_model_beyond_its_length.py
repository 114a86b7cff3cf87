# %% [markdown]
# # A real model beyond its length
#
# SmolLM2-135M was trained on texts of 8,192 tokens. Here it reads longer ones with no further training, under five rotary methods, and once as anybody could read them without any method: the last 8,192 tokens alone ("cropped"). 8 minutes of processor time, most of it for reading 12,288 tokens five times; the run kept here took 51 minutes on 2 CPU cores that were busy with other work. On a GPU it reads 16,384.

# %%
import longrope_jax as lr
import numpy as np
from longrope_jax import plot, rotary, tasks
from longrope_jax.data import corpora, documents
from longrope_jax.evaluation import by_position

model = lr.load("smollm2-135m")  # or a folder of Hugging Face's, a .gguf file
print(model)
print(*model.notes, sep="\n")

# %% [markdown]
# ## What its config says
# Plain RoPE with base 100,000. The last columns: how often a pair turned within the trained length. The slowest ones never completed a turn, so beyond 8,192 tokens the model meets angles that it never saw.

# %%
TRAINED = model.trained_length
print(rotary.explain(model.method, head_dim=model.config.head_dim, trained_length=TRAINED))

# %% [markdown]
# ## One text, longer than the model
# Hamlet. A pass key is stated at the very beginning, and asked for at the end.

# %%
LENGTH = 640 if TINY else 12_288 if jax.default_backend() == "cpu" else 16_384
hamlet = next(d for d in corpora.load("plays") if d.name == "hamlet")
text = documents.tokenize_document(hamlet, model.tokenizer, min_tokens=8, max_tokens=48)
asked = tasks.Passkey().samples(
    [text], model.tokenizer, length=LENGTH + 1, count=1, seed=0, bos="<|endoftext|>"
)
print(model.decode(asked.tokens[0, :60]), "[...]", model.decode(asked.tokens[0, -30:]), sep="\n")

# %% [markdown]
# ## Five methods and cropping
# One forward pass each gives the loss at every position, and with it the probability of the pass key.

# %%
factor = max(1.25, LENGTH / TRAINED)
METHODS = ["rope", f"pi:factor={factor}", f"ntk:factor={factor}", f"yarn:factor={factor}", "abf"]
losses = {}
for method in METHODS:
    losses[method] = model.loss_by_position(asked.tokens, method, length=LENGTH)
    print(f"{method:18} mean loss {losses[method].mean():.3f} nats per token", flush=True)

# %%
losses["cropped"] = by_position.cropped_nll(
    model.config, model.params, model.method, asked.tokens, length=min(TRAINED, LENGTH // 2), stride=min(2_048, LENGTH // 4), batch_size=1
)
plot.loss_by_position(losses, block=LENGTH // 24 if not TINY else 64, trained_length=TRAINED)

# %% [markdown]
# ## Short cost, long gain, and the key
# A method that helps beyond the trained length may cost something within it: both stand side by side. One text and one key show what happens, they prove nothing; more documents and tasks, with intervals, are in `docs/results/extension_suite`.

# %%
edge, answer = min(TRAINED, LENGTH // 2), asked.answer[0, 1:]
print(f"{'':18} {'within':>8} {'beyond':>8} {'last 1,024':>11} {'P(pass key)':>12}")
for method, nll in losses.items():
    within, beyond, last = nll[0, :edge].mean(), nll[0, edge:].mean(), nll[0, -1_024:].mean()
    key = np.exp(-nll[0, answer].sum())
    print(f"{method:18} {within:8.3f} {beyond:8.3f} {last:11.3f} {key:12.2g}")

# %% [markdown]
# In the run kept here plain RoPE falls apart only in the last thousand tokens. NTK-aware and YaRN cost nothing within the trained length, and beyond it they are level with cropping: what they gain over plain RoPE, reading the last 8,192 tokens gains too. What cropping cannot do is see the key; of the methods only ABF gives it a chance, at a higher loss.

# %% [markdown]
# ## Generate
# `rotary` is an argument of whatever a model does. Within the trained length YaRN writes much as RoPE does.

# %%
for method in ("rope", f"yarn:factor={factor}"):
    print(method, "|", model.generate("To be, or not to be:", max_new_tokens=24, rotary=method))

# %% [markdown]
# Next: `04_your_model_your_text` trains a model to a longer context; `docs/explain/choose.md` says which method to take when.

# %% [markdown]
# # Your model, your text
#
# A checkpoint is taken to a longer context: measured as it is, measured under a method with no training, fine-tuned by LoRA, measured again on documents that it never saw, and exported for Hugging Face and llama.cpp. 3 minutes on 2 CPU cores with the small model that is trained here when no checkpoint is named.

# %% [markdown]
# ## What is yours
# A checkpoint is a folder of Hugging Face's, a .gguf file, or `smollm2-135m` (135 million parameters at 16,384 tokens want a GPU); in Colab upload it, or `hf download ID --local-dir DIR`. A text is a folder of .txt, .md or .jsonl files, a few of them longer than the new context.

# %%
CHECKPOINT = ""  # @param {type:"string"}
TEXT = "plays"  # @param {type:"string"}
FACTOR = 4  # @param {type:"integer"}
METHOD = f"yarn:factor={FACTOR}"

import shutil
import longrope_jax as lr
from experiments import lab
from longrope_jax import llama, plot, rotary
from ml_collections import ConfigDict

machine, folder = lab.Machine(), pathlib.Path("runs/your_model")
shutil.rmtree(folder, ignore_errors=True)  # leave this out to go on where a run was killed
SETTINGS = ConfigDict({"corpus": TEXT, "held_out": 4, "bos": "<s>", "sentence_tokens": (8, 48)})

# %% [markdown]
# ## A small model, if you named none
# Two layers with a tokenizer of 1,024 pieces, trained on windows of 128 tokens: small enough for a CPU, and it fails beyond 128 tokens as large ones do beyond theirs.

# %%
def small_model():
    tokenizer = lab.tokenizer("bpe:1024", TEXT, folder)
    config = llama.LlamaConfig(tokenizer.vocab_size, 128, 2, 4, 4, 32, 384)
    recipe = lab.Recipe(rotary.RoPE(312.5), 128, 40 if TINY else 800, 16, 3e-3, warmup_steps=20)
    text = lab.text(SETTINGS, tokenizer, length=128 * FACTOR, windows=4)
    lab.train(lab.fresh(config, tokenizer, recipe.method, machine, seed=0), recipe, text, folder / "small", machine)
    return lab.trained(folder / "small", machine)

model = lr.load(CHECKPOINT) if CHECKPOINT else small_model()
print(model)

# %% [markdown]
# ## Before: as it is, and with a method alone

# %%
LENGTH = FACTOR * model.trained_length
if CHECKPOINT:
    SETTINGS.bos = lab.check_bos(lab.facts(folder, CHECKPOINT, machine), CHECKPOINT)
text = lab.text(SETTINGS, model.tokenizer, length=LENGTH, windows=4)
windows, _ = text.windows(LENGTH, 4)
losses = {
    "as it is": model.loss_by_position(windows, length=LENGTH),
    f"{METHOD}, no training": model.loss_by_position(windows, METHOD, length=LENGTH),
}

# %% [markdown]
# ## Fine-tune by LoRA
# The method is the model's own from here on; adapters of rank 8 on the attention, norms and embeddings train too (LongLoRA's recipe). Killed and started again, it goes on where it was.

# %%
recipe = lab.Recipe(
    model.read_rotary(METHOD), LENGTH, 12 if TINY else 120, 4, 1e-3, warmup_steps=10, trainable="lora_plus"
)
logged = lab.train(model, recipe, text, folder / "tuned", machine)
tuned = lab.trained(folder / "tuned", machine, base=model, recipe=recipe)
print(f"{logged['trainable']:,} numbers trained on {recipe.tokens:,} tokens, {lab.speed(logged):,.0f} tokens/s")

# %% [markdown]
# ## After
# What the tuning gained within the trained length has nothing to do with length; the last column is what it gained beyond that.

# %%
losses["tuned"] = tuned.loss_by_position(windows, length=LENGTH)
plot.loss_by_position(losses, block=LENGTH // 16, trained_length=model.trained_length)

# %%
print(f"nats per token{'':18} {'within':>8} {'beyond':>8} {'beyond less within':>19}")
for name, nll in losses.items():
    within, beyond = nll[:, : model.trained_length].mean(), nll[:, model.trained_length :].mean()
    print(f"{name:32} {within:8.3f} {beyond:8.3f} {beyond - within:19.3f}")

# %% [markdown]
# ## Export, and read it back
# A folder that transformers reads, and a file that llama.cpp reads, with tokenizer, method and context length.

# %%
for name in ("export", "export.gguf"):
    tuned.save(folder / name, context_length=LENGTH)
    again = lr.load(folder / name)
    apart = abs(again.logits(windows[0]) - tuned.logits(windows[0])).max()
    print(f"{name}: {again.trained_length:,} tokens, logits differ by at most {apart:.1e}")
print(again.method, *sorted(path.name for path in (folder / "export").iterdir()), sep="\n")

# %%
print(tuned.generate("KING HENRY", max_new_tokens=40, temperature=0.8))

# %% [markdown]
# In Colab: `from google.colab import files`, then `files.download(str(folder / "export.gguf"))`. The same as a study, with intervals and a cropped control: `experiments/continual_pretraining.py`, `docs/checkpoints.md`.

"""One training run in its own process, slow enough to be killed: resume_driver.py DIRECTORY."""

import sys
import time
from pathlib import Path

import jax
import numpy as np

from longrope_jax import llama, rotary, sharding
from longrope_jax.data import documents, packing, tokenizers
from longrope_jax.data.corpora import Document
from longrope_jax.training import loop, optimizer
from longrope_jax.training.step import init_state, make_train_step

STEPS, HOOK = 60, 41
LENGTH, SECONDS_PER_STEP = 48, 0.03


def two_documents(tokenizer):
    """Two long random documents and a short one, so that some windows are packed."""
    rng = np.random.default_rng(3)
    for name, size in (("a", 60), ("b", 40), ("c", 3)):
        words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(3 * size)]
        text = " ".join(f"{a.title()} {b} {c}." for a, b, c in np.reshape(words, (size, 3)))
        yield documents.tokenize_document(
            Document(name, text), tokenizer, min_tokens=4, max_tokens=40
        )


def main(directory):
    tokenizer = tokenizers.ByteTokenizer()
    task_mixture = packing.TaskMixture(first_sentence=0.5)
    maker = packing.training_windows(
        tuple(two_documents(tokenizer)), tokenizer, length=LENGTH, task_mixture=task_mixture
    )
    config = llama.LlamaConfig(
        vocab_size=260, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32
    )
    adamw = optimizer.OptimizerConfig(1e-2, STEPS, warmup_steps=5)
    mesh = sharding.make_mesh()

    def on_step(step, tokens):
        time.sleep(SECONDS_PER_STEP)
        print(f"step {step}", flush=True)

    def hook(state):
        print("hook begins", flush=True)
        time.sleep(0.2)
        with (directory / "hook.txt").open("a") as file:
            file.write(f"{int(state.step)}\n")

    state = loop.fit(
        init_state(config, adamw, mesh, seed=1),
        make_train_step(config, adamw, mesh),
        packing.iterator(maker, batch=4, seed=2),
        rotary=rotary.make(rotary.RoPE(), head_dim=8, seq_len=LENGTH),
        loop=loop.LoopConfig(STEPS, accumulation=2, log_every=3, checkpoint_every=4),
        mesh=mesh,
        directory=directory,
        on_step=on_step,
        hooks={HOOK: hook},
    )
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
    np.savez(directory / "final.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

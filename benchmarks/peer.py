"""The works as transformers' LlamaForCausalLM does them: PyTorch on the CPU, float32, SDPA.

Eager mode, no torch.compile. Loss and cache are transformers' own ways: [T, V] logits in training,
those of the last token alone in prefill and decoding, a DynamicCache.
"""

import time
from pathlib import Path

import numpy as np

from benchmarks import ours
from benchmarks.work import Sizes

try:
    import torch
    import transformers
except ImportError as error:
    raise ImportError("the peer needs PyTorch: pip install 'longrope_jax[peer]'") from error

NAME = "transformers, PyTorch"


def logits(sizes: Sizes, folder: Path) -> np.ndarray:
    """[T, V] of a few tokens."""
    model, ids = _model(folder / "model"), _tokens(sizes.model, 1, sizes.prompt)[:, :64]
    with torch.inference_mode():
        return model(ids, use_cache=False).logits[0].numpy()


def prefill(sizes: Sizes, folder: Path):
    """Forward over the prompt into a cache, and the next token."""
    model, ids = _model(folder / "model"), _tokens(sizes.model, 1, sizes.prefill)

    @torch.inference_mode()
    def once():
        began = time.perf_counter()
        token = model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)
        return time.perf_counter() - began, token.numpy(), sizes.prefill

    return once


def decode(sizes: Sizes, folder: Path):
    """A bare greedy loop, without what `model.generate` adds to it."""
    model, ids = _model(folder / "model"), _tokens(sizes.model, 1, sizes.prompt)

    @torch.inference_mode()
    def once():
        cache = transformers.DynamicCache(config=model.config)
        model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
        last, new = ids[:, -1:], []
        began = time.perf_counter()
        for _ in range(sizes.new):
            last = model(last, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
            new.append(last)
        seconds = time.perf_counter() - began
        return seconds, torch.cat(new, 1)[0, :8].numpy(), sizes.new

    return once


def choices(sizes: Sizes, folder: Path, *, rows: int = 16):
    """Log-likelihoods of all requests, batches of like length, logits of the choices alone.

    Padding stands on the left, so that the continuations end all rows and `logits_to_keep` keeps
    the output projection to them. lm-evaluation-harness computes all logits.
    """
    model, asked = _model(folder / "model"), ours.requests(sizes)
    order = sorted(range(len(asked)), key=lambda i: -sum(map(len, asked[i])))
    batches = [order[at : at + rows] for at in range(0, len(order), rows)]

    @torch.inference_mode()
    def once():
        found = np.zeros(len(asked))
        began = time.perf_counter()
        for batch in batches:
            found[batch] = _likelihoods(model, [asked[i] for i in batch])
        seconds = time.perf_counter() - began
        return seconds, found, sum(len(c) + len(x) for c, x in asked)

    return once


def _likelihoods(model, batch) -> list[float]:
    """Log-likelihood of each continuation of a batch, in one forward pass."""
    fed = [np.concatenate(one)[:-1] for one in batch]
    longest, kept = max(map(len, fed)), max(len(one.continuation) for one in batch)
    ids = torch.zeros((len(fed), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, seen, one in zip(ids, mask, fed, strict=True):
        row[-len(one) :], seen[-len(one) :] = torch.from_numpy(one.astype(np.int64)), 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(
        ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=kept
    )
    logs = out.logits.log_softmax(-1)
    answers = [torch.from_numpy(one.continuation.astype(np.int64)) for one in batch]
    return [
        float(row[-len(x) :].gather(1, x[:, None]).sum())
        for row, x in zip(logs, answers, strict=True)
    ]


def gradient(sizes: Sizes, folder: Path, *, checkpointing: bool = False):
    """Loss and gradient of one row; values are the loss and the gradient's norm."""
    model, ids = _model(folder / "model").train(), _tokens(sizes.model, 1, sizes.train + 1)
    if checkpointing:
        model.gradient_checkpointing_enable()

    def once():
        model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        loss = _loss(model, ids)
        loss.backward()
        seconds = time.perf_counter() - began
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        return seconds, np.asarray([loss.item(), norm.item()]), sizes.train

    return once


def ablation(sizes: Sizes, folder: Path, *, phase: str):
    """Steps of the ablation's training with PyTorch's fused AdamW."""
    settings = ours.ablation_phase(sizes, phase)
    model = _model(folder / "ablation").train()
    adam, clip = _adamw(model, settings.adam)
    rows = ours.tokens(ours.ablation_model(sizes), settings.batch, settings.length + 1)

    def once():
        began = time.perf_counter()
        for _ in range(sizes.ablation_steps):
            adam.zero_grad(set_to_none=True)
            loss = _loss(model, torch.from_numpy(rows.astype(np.int64)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            adam.step()
        value = loss.item()
        seconds = time.perf_counter() - began
        return seconds, np.asarray([value]), sizes.ablation_steps * rows[:, 1:].size

    return once


def use_threads(count: int) -> int:
    """Sets and returns PyTorch's threads within an operation."""
    torch.set_num_threads(count)
    return torch.get_num_threads()


def _adamw(model, settings: dict):
    """The same optimizer, and the norm that gradients are clipped to."""
    full = ours.optimizer.OptimizerConfig(**settings)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    rest = [p for name, p in model.named_parameters() if "norm" not in name]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": rest}]
    adam = torch.optim.AdamW(
        groups,
        lr=full.learning_rate,
        betas=(full.b1, full.b2),
        eps=full.eps,
        weight_decay=full.weight_decay,
        fused=True,
    )
    return adam, full.clip


def _model(folder: Path):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


def _tokens(config, rows: int, count: int):
    return torch.from_numpy(ours.tokens(config, rows, count).astype(np.int64))


def _loss(model, ids):
    """Mean loss over the last T of [B, T + 1], given already shifted as transformers allows."""
    targets = ids[:, 1:].contiguous()
    return model(ids[:, :-1], labels=targets, shift_labels=targets, use_cache=False).loss

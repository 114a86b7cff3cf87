"""Continues a text with a checkpoint, under its own rotary method or another one.

    python -m experiments.generate --model PATH --rotary yarn:factor=4 --prompt-file F

PATH is what `longrope_jax.weights.load` takes (a Hugging Face folder, a GGUF file, Meta's folder, a
model's name) or the folder of a run of our own training (WORKDIR/runs/NAME), whose record says its
method. Text goes to stdout as it comes; what was assumed and, at the end, tokens/s of prefill and
of decoding go to stderr.
"""

import dataclasses
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from absl import logging as absl_logging

from experiments import cli, record
from experiments.streaming import TextStream
from longrope_jax import generate, llama, rotary
from longrope_jax.data import tokenizers
from longrope_jax.sampling import Sampling
from longrope_jax.training import checkpoints

_TEXT = {
    "model": (None, "Checkpoint: file, folder or name."),
    "prompt": (None, "Text to continue."),
    "prompt-file": (None, "File that holds it; - is stdin."),
    "rotary": (None, "Method, as name:option=value,...; default the checkpoint's own."),
    "tokenizer": (None, "'bytes' or a tokenizer.json; default the checkpoint's own."),
    "cache-dtype": (None, "Of keys and values; default the context's."),
    "context-dtype": ("float32", "Of activations and matrix products."),
}
_WHOLE = {
    "new-tokens": (200, "At most so many."),
    "refresh-every": (1, "With --rotary-length=current, tokens between looks at the length."),
    "seed": (0, "Of sampling."),
}
_REAL = {
    "temperature": (0.0, "0 takes the most likely token."),
    "top-p": (1.0, "Share of probability to draw from."),
}


def _parse(argv: list[str]) -> flags.FlagValues:
    """The flags of one command line, in a set of their own: a process can have several."""
    f = flags.FlagValues()
    define = {flags.DEFINE_string: _TEXT, flags.DEFINE_integer: _WHOLE, flags.DEFINE_float: _REAL}
    for kind, table in define.items():
        for name, (default, text) in table.items():
            kind(name, default, text, flag_values=f)
    text = "Put the beginning token first; default as the checkpoint's own software does."
    flags.DEFINE_bool("bos", None, text, flag_values=f)
    lengths = generate.ROTARY_LENGTHS
    flags.DEFINE_enum("rotary-length", "final", lengths, "See generate.generate.", flag_values=f)
    if "--help" in argv:
        print(__doc__, f.get_help(), sep="\n")
        sys.exit(0)
    rest = f(argv)
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}: options look like --prompt=TEXT")
    return f


@dataclasses.dataclass(frozen=True)
class Model:
    """What a checkpoint gives; None where it does not say."""

    config: llama.LlamaConfig
    params: Any
    method: rotary.Method | None
    tokenizer: tokenizers.Tokenizer | None
    context_length: int | None
    special_ids: dict[str, int]
    stop_ids: tuple[int, ...]
    adds_bos: bool
    notes: tuple[str, ...]


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; errors are one line and exit status 2."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        _run(_parse(sys.argv if argv is None else argv))
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (flags.Error, ValueError, OSError) as error:
        cli.fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cli.fail(
            f"out of memory: {str(error).splitlines()[0]} Fewer --new-tokens, a shorter prompt or "
            "--cache-dtype=bfloat16 need less"
        )


def _run(f: flags.FlagValues) -> None:
    sampling = Sampling(f["temperature"].value, f["top-p"].value, f["seed"].value)
    if f["model"].value is None:
        raise ValueError("no checkpoint: give --model=PATH")
    text = _prompt(f)
    model = load(f["model"].value, f["context-dtype"].value)
    method = method_of(f["rotary"].value, model)
    tokenizer = _tokenizer(f["tokenizer"].value, model)
    ids = _encoded(text, tokenizer, model, bos=f["bos"].value)
    # An embedding may have more rows than the tokenizer ids.
    known = tokenizer.vocab_size
    stream = TextStream(lambda ids: tokenizer.decode([i for i in ids if i < known]), ids)
    result = generate.generate(
        model.config,
        model.params,
        method,
        [ids],
        f["new-tokens"].value,
        rotary_length=f["rotary-length"].value,
        refresh_every=f["refresh-every"].value,
        sampling=sampling,
        stop=[(at,) for at in model.stop_ids],
        stream=lambda new: print(stream.add(new[0]), end="", flush=True),
        cache_dtype=f["cache-dtype"].value,
    )
    print(stream.close(), flush=True)
    _tell(speed(result))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def speed(result: generate.Generation) -> str:
    """One line: tokens and tokens/s of prefill (all but the prompt's last token) and decoding."""
    phases = (
        ("prefill", result.prefilled, result.prefill_seconds),
        ("decode", result.decoded, result.decode_seconds),
    )
    parts = [f"{name} {n} tokens, {n / max(s, 1e-9):,.1f} tokens/s" for name, n, s in phases]
    return "; ".join(parts) + " (loading, compilation and printing not counted)"


def _prompt(f: flags.FlagValues) -> str:
    text, file = f["prompt"].value, f["prompt-file"].value
    if (text is None) == (file is None):
        raise ValueError("give the text to continue: either --prompt=TEXT or --prompt-file=FILE")
    if file is None:
        return text
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: byte {error.start} is wrong") from error


def load(path: str, dtype: str) -> Model:
    """A checkpoint of any kind.

    Raises:
        ValueError: as `weights.load`, or as `checkpoints.restore_params`.
    """
    run = _run_folder(Path(path).expanduser())
    if run is not None:
        return _load_run(run, dtype)
    from longrope_jax import weights

    loaded = weights.load(path, dtype=dtype)
    for note in loaded.notes:
        _tell(f"checkpoint: {note}")
    return Model(
        loaded.config,
        loaded.params,
        loaded.rotary_spec,
        loaded.tokenizer,
        loaded.context_length,
        loaded.special_ids,
        loaded.stop_ids,
        loaded.adds_bos,
        loaded.notes,
    )


def _run_folder(path: Path) -> Path | None:
    """The folder of orbax checkpoints that `path` is or holds."""
    for folder in (path, path / "checkpoints"):
        if checkpoints.is_folder_of_steps(folder):
            return folder
    if (path / "runs").is_dir():
        runs = sorted(p.name for p in (path / "runs").iterdir())
        raise ValueError(f"{path} holds runs: give {path}/runs/NAME, NAME of {', '.join(runs)}")
    return None


def _load_run(folder: Path, dtype: str) -> Model:
    shapes = checkpoints.params_shapes(folder)
    if "embed" not in shapes:
        raise ValueError(f"{folder} holds adapters alone: use the run's export")
    known = record.load(folder.parent) or record.load(folder)
    config = dataclasses.replace(known.model, dtype=dtype) if known else config_of(shapes, dtype)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    params = checkpoints.restore_params(folder, abstract)
    note = f"a run of this package, {config.rotary_layout} layout, norm_eps {config.norm_eps}"
    note += "" if known else ", as nothing says them"
    _tell(f"checkpoint: {note}")
    if not known:
        return Model(config, params, None, None, None, {}, (), False, (note,))
    special = getattr(known.tokenizer, "special_tokens", tokenizers.SpecialTokens())
    own = known.method, known.tokenizer, None, special.ids(), special.stops, bool(special.adds_bos)
    return Model(config, params, *own, (note,))


def config_of(shapes: dict, dtype: str = "float32") -> llama.LlamaConfig:
    """The architecture that parameters of these shapes have; the rest is LlamaConfig's default."""
    V, D = shapes["embed"].shape
    L, _, N, H = shapes["layers"]["attention"]["wq"].shape
    return llama.LlamaConfig(
        vocab_size=V,
        d_model=D,
        n_layers=L,
        n_heads=N,
        n_kv_heads=shapes["layers"]["attention"]["wk"].shape[2],
        head_dim=H,
        d_ff=shapes["layers"]["mlp"]["up"].shape[2],
        tie_embeddings="unembed" not in shapes,
        dtype=dtype,
        param_dtype=str(shapes["embed"].dtype),
    )


def method_of(text: str | None, model: Model) -> rotary.Method:
    """The method that --rotary says, its open options filled from the checkpoint, and told so.

    Raises:
        ValueError: as `rotary.parse`, or no method at all.
    """
    if text is None:
        if model.method is None:
            raise ValueError("this checkpoint does not say its method: give --rotary=NAME:...")
        _tell(f"rotary: {model.method}, the checkpoint's own")
        return model.method
    fill = known_options(model)
    method = rotary.parse(text, fill)
    used = [f"{k}={v}" for k, v in fill.items() if not re.search(rf"\b{k}\s*=", text)]
    used = [item for item in used if item in _items(method)]
    _tell(f"rotary: {method}" + (f"; from the checkpoint: {', '.join(used)}" if used else ""))
    return method


def _items(method: rotary.Method) -> set[str]:
    fields = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    inner = _items(fields["inner"]) if "inner" in fields else set()
    return {f"{k}={v}" for k, v in fields.items()} | inner


def known_options(model: Model) -> dict[str, Any]:
    """What the checkpoint knows of a method's options, where it can be meant in one way only.

    base, of the pretraining; original_length, its own or of plain RoPE the context length; inner,
    the checkpoint's method, for methods around another.
    """
    method = model.method
    if method is None:
        return {}
    options = {"inner": method}
    while hasattr(method, "inner"):
        method = method.inner
    if hasattr(method, "base"):
        options["base"] = method.base
    length = getattr(method, "original_length", None)
    if length is None and isinstance(method, rotary.RoPE):
        length = model.context_length
    if length is not None:
        options["original_length"] = length
    return options


def _tokenizer(text: str | None, model: Model) -> tokenizers.Tokenizer:
    tokenizer = model.tokenizer if text is None else tokenizers.load(text)
    size = model.config.vocab_size
    if tokenizer is None and size == tokenizers.ByteTokenizer().vocab_size:
        _tell("tokenizer: bytes, by the size of the vocabulary")
        tokenizer = tokenizers.ByteTokenizer()
    if tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer: give --tokenizer=PATH")
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"a tokenizer of {tokenizer.vocab_size} ids, a model of {size}: not a pair"
        )
    return tokenizer


def _encoded(text: str, tokenizer, model: Model, *, bos: bool | None) -> np.ndarray:
    ids = tokenizer.encode(text)
    first = model.special_ids.get("bos")
    how, bos = ("the checkpoint's way", model.adds_bos) if bos is None else ("as asked", bos)
    if bos and first is None:
        raise ValueError("--bos: this checkpoint says no beginning token")
    if bos:
        ids = np.concatenate([[first], ids])
    if not len(ids):
        raise ValueError("the prompt is empty: give some text, or --bos")
    _tell(f"prompt: {len(ids)} tokens, {'with' if bos else 'without'} a beginning token, {how}")
    return ids


if __name__ == "__main__":
    main()

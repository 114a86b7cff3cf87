"""A model that can be run: its configuration, parameters, rotary method and tokenizer.

model = load("smollm2-135m")
model.generate("Once upon a time", max_new_tokens=40, rotary="yarn:factor=4")
model.perplexity(texts, rotary="abf")
model.with_rotary("yarn:factor=4").save("out")
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from numpy.typing import ArrayLike

from longrope_jax import generate as generate_lib
from longrope_jax import llama, runs, sharding, weights
from longrope_jax import rotary as rotary_lib
from longrope_jax.data.tokenizers import SpecialTokens, Tokenizer
from longrope_jax.evaluation import by_position
from longrope_jax.evaluation import perplexity as perplexity_lib
from longrope_jax.evaluation.windowing import OnePass, Windowing
from longrope_jax.rotary import RotaryLike
from longrope_jax.sampling import Sampling
from longrope_jax.streaming import TextRows

Documents = str | Sequence[str] | Sequence[ArrayLike]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model that can be run, as `load` returns it.

    Every method that takes `rotary` takes a rotary method, its text such as "yarn:factor=4"
    (options that the text leaves open are filled from the checkpoint, see
    `rotary.parse_for_checkpoint`), or a Rotary from `rotary.make`; None is the model's own method.
    Text becomes token ids by `encode`, which puts a beginning token first where the checkpoint's
    own software does; `bos` overrules.

    Attributes:
        config: the architecture.
        params: the parameters, on a device or a mesh; None where `open_model` left them out.
        method: the rotary method that the model was trained or extended with.
        tokenizer: the tokenizer, or None where the checkpoint has none that is known here.
        trained_length: tokens per sequence that the model was trained for under its method, as its
            checkpoint declares, or None.
        special_tokens: ids that begin and end a text, and the chat template.
        notes: what was recognised or assumed, in words.
        context_length: tokens that `save` declares, where that is not `trained_length`: what a
            method reaches that was given by `with_rotary`.
        family: the model type that the checkpoint names, such as "phi3", which `save` keeps.
    """

    config: llama.LlamaConfig
    params: Any
    method: rotary_lib.Method
    tokenizer: Tokenizer | None = None
    trained_length: int | None = None
    special_tokens: SpecialTokens = dataclasses.field(default_factory=SpecialTokens)
    notes: tuple[str, ...] = ()
    context_length: int | None = None
    family: str | None = None

    def __repr__(self) -> str:
        c, parts = self.config, [str(self.method)]
        if self.params is not None:
            size = sum(x.size for x in jax.tree.leaves(self.params))
            parts.insert(0, f"{size:,} parameters in {c.param_dtype}")
        if self.trained_length is not None:
            parts.append(f"trained on {self.trained_length:,} tokens")
        text = f"Model({', '.join(parts)}, vocabulary of {c.vocab_size:,})"
        return text if len(text) <= 160 else f"{text[:157]}..."

    def encode(self, text: str, bos: bool | None = None) -> np.ndarray:
        """Token ids of a text, int32 [T].

        Args:
            text: the text; it never turns into a special token.
            bos: whether the beginning token comes first; None is what the checkpoint's own
                software does with a prompt.

        Raises:
            ValueError: The model has no tokenizer, or `bos` is True and it has no beginning token.
        """
        ids, first = self._tokenizer().encode(text), self.beginning(bos)
        return ids if first is None else np.concatenate([np.asarray([first], np.int32), ids])

    def decode(self, ids: ArrayLike) -> str:
        """The text of token ids [T]; ids that the tokenizer does not know are left out.

        Raises:
            ValueError: The model has no tokenizer.
        """
        tokenizer = self._tokenizer()
        # An embedding may have more rows than the tokenizer ids.
        return tokenizer.decode([i for i in np.asarray(ids).tolist() if i < tokenizer.vocab_size])

    def beginning(self, bos: bool | None = None) -> int | None:
        """The id that begins a text, or None where nothing does; see `encode` for `bos`.

        Raises:
            ValueError: `bos` is True and the model has no beginning token.
        """
        if bos and self.special_tokens.bos is None:
            raise ValueError("bos=True, but this checkpoint says no beginning token: leave bos out")
        wanted = self.special_tokens.adds_bos if bos is None else bos
        return self.special_tokens.bos if wanted else None

    def logits(
        self, tokens: str | ArrayLike, rotary: RotaryLike | None = None, *, bos: bool | None = None
    ) -> jax.Array:
        """Logits of the next token at every position, float32.

        Args:
            tokens: a text or its ids [T], which give [T, V]; or ids [B, T], which give [B, T, V].
            rotary: see `Model`; made for T tokens.
            bos: of a text, see `encode`.

        Raises:
            ValueError: Ids lie outside the vocabulary or have another shape.
        """
        ids = self.encode(tokens, bos) if isinstance(tokens, str) else np.asarray(tokens)
        if ids.ndim not in (1, 2) or not ids.size or ids.dtype.kind not in "iu":
            found = f"{ids.dtype}{list(ids.shape)}"
            raise ValueError(f"tokens must be a text or whole ids [T] or [B, T], got {found}")
        with sharding.mesh_of(self._params()):
            rows = np.atleast_2d(ids)
            # A mesh divides whole rows: spare ones repeat the last and are left out.
            spare = ((0, sharding.spare_rows(len(rows))), (0, 0))
            found = llama.logits(
                self.config, self._params(), np.pad(rows, spare, "edge"), self.read_rotary(rotary)
            )
        return found[: len(rows)] if ids.ndim == 2 else found[0]

    def generate(
        self,
        prompt: str | Sequence[str] | ArrayLike,
        *,
        max_new_tokens: int = 200,
        rotary: RotaryLike | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str | int | Sequence[int]] = (),
        stream: Callable[[Any], object] | None = None,
        bos: bool | None = None,
        rotary_length: str = "final",
        refresh_every: int = 1,
        cache_dtype: str | None = None,
    ) -> Any:
        """Continues a prompt and returns what is new: the prompt itself is not repeated.

        Text in, text out; token ids in, token ids out. A row ends at any token that ends a text of
        this checkpoint, at a stop, or after `max_new_tokens`.

        Args:
            prompt: a text, which gives a str; a list of texts, which gives a list of str; token ids
                [T], which give an int32 array; or a list of them, which gives a list of arrays.
            max_new_tokens: the most tokens that are added to a row.
            rotary: see `Model`.
            temperature: 0 takes the most likely token, above it tokens are drawn.
            top_p: share of the probability to draw from, see `sampling.Sampling`.
            seed: seed of the draws; row i has `seed + i`, or give one seed per row.
            stop: what also ends a row and is left out: strings (with a text as prompt), ids, or
                sequences of ids, in any mixture.
            stream: is given what is new a piece at a time: a str or an array for one prompt, a list
                of them for several.
            bos: of text, see `encode`.
            rotary_length: "final" or "current", see `generate.generate`.
            refresh_every: see `generate.generate`.
            cache_dtype: dtype of cached keys and values; None is the activations' dtype.

        Raises:
            ValueError: The prompt is empty, an id lies outside the vocabulary, stop strings come
                with ids, or an option is out of range.
        """
        rows, one, is_text = self._prompts(prompt, bos)
        strings, ids = _stops(stop)
        if strings and not is_text:
            raise ValueError(f"stop={strings[0]!r} needs a text as prompt: give stops as ids")
        given = _of_one(stream) if one and stream else stream
        texts = TextRows(self.decode, rows, strings, given) if is_text else None
        with sharding.mesh_of(self._params()):
            result = generate_lib.generate(
                self.config,
                self._params(),
                self.read_rotary(rotary),
                rows,
                max_new_tokens,
                rotary_length=rotary_length,
                refresh_every=refresh_every,
                sampling=Sampling(temperature, top_p, seed),
                stop=[*ids, *((end,) for end in self.special_tokens.stops)],
                stream=given if texts is None else texts.add,
                cache_dtype=cache_dtype,
            )
        found = result.tokens if texts is None else texts.close()
        return found[0] if one else found

    def perplexity(
        self,
        documents: Documents,
        rotary: RotaryLike | None = None,
        *,
        windowing: Windowing | None = None,
        bos: bool | None = None,
        batch_size: int = 1,
    ) -> perplexity_lib.PerplexityResult:
        """Perplexity of documents, weighted by tokens.

        Args:
            documents: a text or a list of texts, or a list of token ids [T] without a beginning
                token.
            rotary: see `Model`; made for the windows' length.
            windowing: `windowing.Sliding` or `windowing.OnePass`; None is one pass over windows of
                `trained_length`. Perplexities of different windowings do not compare.
            bos: whether the beginning token stands before every window, see `encode`.
            batch_size: windows per step, which with their length fixes the memory; a mesh takes
                as many more as make a number that it divides.

        Raises:
            ValueError: There is nothing to score, or no length is known.
        """
        windowing = windowing or OnePass(self._length(None))
        with sharding.mesh_of(self._params()):
            return perplexity_lib.perplexity(
                self.config,
                self._params(),
                self.read_rotary(rotary),
                self._documents(documents),
                windowing,
                bos=self.beginning(bos),
                batch_size=batch_size + sharding.spare_rows(batch_size),
            )

    def loss_by_position(
        self,
        documents: Documents,
        rotary: RotaryLike | None = None,
        *,
        length: int | None = None,
        bos: bool | None = None,
        batch_size: int = 1,
    ) -> np.ndarray:
        """Loss in nats at every position of whole windows, float32 [windows, length].

        The mean over windows is the loss by position; `by_position.position_blocks` averages
        blocks of positions.

        Args:
            documents: as in `perplexity`; each is cut into windows, and what is left is left out.
            rotary: see `Model`; made for `length` tokens.
            length: tokens that a window predicts; None is `trained_length`.
            bos: whether the beginning token stands before every window, see `encode`.
            batch_size: windows per step, which with their length fixes the memory; a mesh takes
                as many more as make a number that it divides.

        Raises:
            ValueError: No document fills a window, or no length is known.
        """
        tokens = by_position.whole_windows(
            self._documents(documents), self._length(length), bos=self.beginning(bos)
        )
        with sharding.mesh_of(self._params()):
            rows = batch_size + sharding.spare_rows(batch_size)
            return by_position.nll_by_position(
                self.config, self._params(), self.read_rotary(rotary), tokens, batch_size=rows
            )

    def read_rotary(self, rotary: RotaryLike | None) -> rotary_lib.Method | rotary_lib.Rotary:
        """What `rotary` means for this model: its text is read, None is the model's own method.

        Raises:
            ValueError: As `rotary.parse_for_checkpoint`.
        """
        if isinstance(rotary, str):
            return self.with_rotary(rotary).method
        return self.method if rotary is None else rotary

    def with_rotary(self, rotary: rotary_lib.Method | str) -> "Model":
        """The same model under another rotary method; `notes` say which options were filled.

        Args:
            rotary: a method, or its text (see `Model`).

        Raises:
            ValueError: The text cannot be read, or it is no method.
        """
        method, note = _read(rotary, self.method, self.trained_length)
        reached = self.context_length
        if method != self.method:
            reached = _reach(method, self.trained_length)
        return dataclasses.replace(
            self, method=method, notes=(*self.notes, note), context_length=reached
        )

    def save(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        dtype: str | None = None,
        context_length: int | None = None,
        tokenizer: Tokenizer | Literal["own"] | None = "own",
    ) -> None:
        """Writes a checkpoint that transformers or llama.cpp reads, with tokenizer and stop ids.

        Args:
            path: a new or empty folder, or a file that does not exist.
            format: "hf" for a Hugging Face folder or "gguf" for a file; None is "gguf" where the
                path ends in .gguf, else "hf".
            dtype: dtype of the tensors in the file; None is that of the parameters.
            context_length: tokens to declare; None is `declared_length`.
            tokenizer: what is written beside the model; "own" is the model's, None is none.

        Raises:
            ValueError: The format lacks the method, the tokenizer or the dtype, or something is at
                the path already.
        """
        weights.save(
            path,
            self.config,
            self._params(),
            self.method,
            self.tokenizer if tokenizer == "own" else tokenizer,
            special_tokens=self.special_tokens,
            format=format or format_of(path),
            dtype=dtype,
            context_length=context_length or self.declared_length(),
            family=self.family,
        )

    def declared_length(self) -> int | None:
        """Tokens that `save` declares: what the checkpoint declares, unless its method was changed.

        After `with_rotary` it is the longer of `trained_length` and what the method reaches, its
        original_length times its factor. None where nothing is known.
        """
        return self.context_length or self.trained_length

    def _params(self) -> Any:
        if self.params is None:
            raise ValueError("this model has no parameters: longrope_jax.load reads them")
        return self.params

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer: give token ids, or "
                "dataclasses.replace(model, tokenizer=longrope_jax.data.tokenizers.load(FILE))"
            )
        return self.tokenizer

    def _length(self, length: int | None) -> int:
        length = self.trained_length if length is None else length
        if length is None:
            raise ValueError("this checkpoint declares no trained length: give the windows' length")
        return length

    def _prompts(self, prompt, bos) -> tuple[list[np.ndarray], bool, bool]:
        """Token ids of each row, whether there is one row alone, and whether it was text."""
        if isinstance(prompt, str) or all(isinstance(row, str) for row in prompt):
            texts = [prompt] if isinstance(prompt, str) else prompt
            rows = [self.encode(text, bos) for text in texts]
            if not all(map(len, rows)):
                raise ValueError("the prompt is empty: give some text, or bos=True")
            return rows, isinstance(prompt, str), True
        if bos is not None:
            raise ValueError(f"bos={bos} is for text: put the beginning token into the ids")
        one = np.ndim(prompt[0]) == 0
        return [np.asarray(row) for row in ([prompt] if one else prompt)], one, False

    def _documents(self, documents: Documents) -> list[np.ndarray]:
        documents = [documents] if isinstance(documents, str) else documents
        return [
            self._tokenizer().encode(one) if isinstance(one, str) else np.asarray(one)
            for one in documents
        ]


def load(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
    rotary_layout: str = "auto",
    step: int | None = None,
) -> Model:
    """Loads a checkpoint of any kind; nothing in it is executed.

    Args:
        source: a Hugging Face folder, a .gguf file, Meta's folder, a run of this package
            (WORKDIR/runs/NAME), or a name of `weights.pretrained.MODELS` such as "smollm2-135m".
        mesh: where the parameters go; None is the default device.
        dtype: dtype of activations and matrix products.
        param_dtype: dtype of the parameters, whatever the file's is.
        rotary_layout: how features are paired; "auto" is the format's own, see
            `weights.read_params`.
        step: of a run of this package, the step of the checkpoint; None is the newest.

    Raises:
        ValueError: There is no such checkpoint or step, it is damaged or of another architecture, a
            package is missing that reads it, or the mesh does not divide.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype}
    folder = runs.checkpoints_folder(source)
    if folder is None:
        if step is not None:
            raise ValueError(f"step={step} is of runs of this package, which {source} is not")
        found = weights.open_checkpoint(source)
        config, params, notes = weights.read_params(
            found, mesh=mesh, rotary_layout=rotary_layout, **options
        )
        return dataclasses.replace(_of_foreign(found), config=config, params=params, notes=notes)
    model = _of_run(folder)
    layout = model.config.rotary_layout if rotary_layout == "auto" else rotary_layout
    config = dataclasses.replace(model.config, rotary_layout=layout, **options)
    return dataclasses.replace(model, config=config, params=_run_params(folder, config, mesh, step))


def open_model(source: str | Path) -> Model:
    """What `load` returns, without the parameters: headers alone are read.

    A wrong method, token or option is found with it before minutes of loading.

    Raises:
        ValueError: As `load`.
    """
    folder = runs.checkpoints_folder(source)
    return _of_run(folder) if folder else _of_foreign(weights.open_checkpoint(source))


def format_of(path: str | Path) -> str:
    """The format that `Model.save` writes to a path: "gguf" where it ends in .gguf, else "hf"."""
    return "gguf" if Path(path).suffix == ".gguf" else "hf"


def _of_foreign(found) -> Model:
    return Model(
        config=found.config,
        params=None,
        method=found.rotary,
        tokenizer=found.tokenizer,
        trained_length=found.context_length,
        special_tokens=found.special_tokens,
        notes=tuple(found.notes),
        family=found.family,
    )


def _reach(method: rotary_lib.Method, trained_length: int | None) -> int | None:
    found = [
        int((getattr(one, "original_length", None) or 0) * getattr(one, "factor", 1))
        for one in rotary_lib.distinct(method)
    ]
    return max(trained_length or 0, *found) or None


def _of_run(folder: Path) -> Model:
    record = runs.record_of(folder)
    # How it was trained on its machine is no part of the model.
    machine = {"attention": "auto", "context_parallel": "all_gather", "remat": "none"}
    config = dataclasses.replace(record.config, sparse_group=0, **machine)
    note = f"a run of this package, {config.rotary_layout} layout, norm_eps {config.norm_eps}"
    return Model(
        config=config,
        params=None,
        method=record.method,
        tokenizer=record.tokenizer,
        trained_length=record.trained_length,
        special_tokens=record.special_tokens,
        notes=(note,),
        context_length=_reach(record.method, record.trained_length),
    )


def _run_params(folder: Path, config: llama.LlamaConfig, mesh: Mesh | None, at: int | None) -> Any:
    # Orbax takes a second to import, and nothing else here needs it.
    from longrope_jax.training import checkpoints, step

    if "embed" not in checkpoints.params_shapes(folder, at):
        raise ValueError(f"{folder} holds adapters alone: load the run's export")
    if mesh is not None:
        return checkpoints.restore_params(folder, step.abstract_params(config, mesh), at)
    here = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: llama.init_params(config, jax.random.key(0)))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return checkpoints.restore_params(folder, abstract, at)


def _read(
    method, own: rotary_lib.Method, trained_length: int | None
) -> tuple[rotary_lib.Method, str]:
    """A method and a note on it."""
    if not isinstance(method, str):
        if isinstance(method, type) or not callable(getattr(method, "frequencies", None)):
            raise ValueError(f"rotary must be a method or its text, got {method!r:.80}")
        return method, f"rotary: {method}"
    found, filled = rotary_lib.parse_for_checkpoint(method, own, trained_length)
    said = ", ".join(f"{name}={value}" for name, value in filled.items())
    return found, f"rotary: {found}" + (f"; from the checkpoint: {said}" if said else "")


def _stops(stop) -> tuple[list[str], list[Sequence[int]]]:
    """Stop strings, and stop sequences of ids."""
    stops = [stop] if isinstance(stop, str) else list(stop)
    strings = [one for one in stops if isinstance(one, str)]
    if "" in strings:
        raise ValueError("stop has an empty string, which every text holds: leave it out")
    ids = [one for one in stops if not isinstance(one, str)]
    return strings, [(one,) if np.ndim(one) == 0 else one for one in ids]


def _of_one(stream: Callable[[Any], object]) -> Callable[[list], None]:
    """A stream of several rows that hands over the only row's pieces."""

    def hand_over(pieces: list) -> None:
        if len(pieces[0]):
            stream(pieces[0])

    return hand_over

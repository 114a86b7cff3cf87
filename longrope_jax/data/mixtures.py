"""A mixture says which corpora a run trains on, in which shares, and at which lengths when.

    mixture = mixtures.parse({
        "sources": {
            "books": {"cache": "CACHES/books", "weight": 4.5, "epochs": 3, "least": 32_768},
            "web": {"cache": "CACHES/web", "weight": 95.5},
        },
        "stages": ({"until": 0.4, "length": 4096}, {"until": 1.0, "length": 32_768}),
    })
    plan = mixtures.plan(mixture, tokenizer, steps=1000, tokens_per_step=2**22, seed=0, bos="<s>")
    loop.fit(..., data=plan.iterator(mesh), plan=plan)

Every source is a stream of documents (`streams`) in blocks of the longest length, whose order is
drawn anew in each epoch. The n-th block of a run is the same whatever the stages' lengths: a
shorter window is a part of a block, so runs of the same tokens per step see the same text in the
same order, and every token is predicted once before any is seen twice. Which block of which source
a step trains on follows from the number of the step alone: a run goes on exactly, on any number of
hosts, and its shares and epochs are known at every step.
"""

import functools
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from longrope_jax.data import token_cache
from longrope_jax.data.packing import WindowMaker
from longrope_jax.data.streams import Stream
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.errors import unknown_name
from longrope_jax.sharding import batch_share

_EPOCHS = 2**31
_PARTS = 2**30  # that weights are rounded to

# LLaMA's seven sources (2302.13971 Table 1): share of the tokens in percent, and epochs of them in
# a run of 1.4 trillion tokens.
LLAMA = {
    "commoncrawl": (67.0, 1.10),
    "c4": (15.0, 1.06),
    "github": (4.5, 0.64),
    "wikipedia": (4.5, 2.45),
    "books": (4.5, 2.23),
    "arxiv": (2.5, 1.06),
    "stackexchange": (2.0, 1.03),
}


@dataclass(frozen=True)
class Source:
    """A Source is documents of one token cache, with their share of what is trained on.

    Attributes:
        cache: folder that `longrope tokenize` wrote.
        weight: share of the tokens, beside the weights of the other sources.
        epochs: the most times that its tokens may be seen; 0 is any number.
        least, greatest: tokens of its documents; 0 is no bound.
        cut: tokens of the pieces that its documents are cut into; 0 leaves them whole.
    """

    cache: str
    weight: float = 1.0
    epochs: float = 0.0
    least: int = 0
    greatest: int = 0
    cut: int = 0


@dataclass(frozen=True)
class Stage:
    """A Stage is a part of a run with windows of one length.

    Attributes:
        until: share of the run's steps at which it ends.
        length: tokens of a window.
        weights: (source, weight) of sources that have another weight in this stage.
    """

    until: float
    length: int
    weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Mixture:
    """A Mixture is sources by name, and stages in the order in which they are trained.

    Raises:
        ValueError: no source or stage, a weight that is no share, stages that do not end at 1, or
            lengths that do not divide the longest.
    """

    sources: tuple[tuple[str, Source], ...]
    stages: tuple[Stage, ...]

    def __post_init__(self):
        if not self.sources or not self.stages:
            raise ValueError("a mixture needs sources and stages, such as one of until=1")
        names = [name for name, _ in self.sources]
        for name, source in self.sources:
            if source.epochs < 0:
                raise ValueError(f"epochs of {name!r} must be 0 or more, got {source.epochs}")
        for stage in self.stages:
            for name, _ in stage.weights:
                if name not in names:
                    raise ValueError(unknown_name("source", name, names))
            if stage.length < 1 or self.block % stage.length:
                raise ValueError(
                    f"a stage's length must divide the longest, {self.block}, got {stage.length}"
                )
            weights = self.weights(stage)
            if min(weights) < 0 or not sum(weights) > 0:
                raise ValueError(f"weights must be 0 or more, and one above 0, got {weights}")
        ends = [stage.until for stage in self.stages]
        if ends[-1] != 1 or any(a >= b for a, b in itertools.pairwise([0.0, *ends])):
            raise ValueError(f"until must rise from stage to stage and end at 1, got {ends}")

    @property
    def block(self) -> int:
        """Tokens of a block: the longest window."""
        return max(stage.length for stage in self.stages)

    def weights(self, stage: Stage) -> list[float]:
        """The weight of each source in a stage."""
        own = dict(stage.weights)
        return [own.get(name, source.weight) for name, source in self.sources]


def parse(settings: Mapping[str, Any]) -> Mixture:
    """Reads a mixture from a config value: `sources` by name, and `stages`.

    Raises:
        ValueError: an unknown field, or what `Mixture` refuses.
    """
    sources = tuple(
        (name, _fields(Source, value, f"source {name!r}"))
        for name, value in settings["sources"].items()
    )
    stages = []
    for value in settings["stages"]:
        value = dict(value)
        weights = tuple(dict(value.pop("weights", {})).items())
        stages.append(_fields(Stage, value | {"weights": weights}, "stage"))
    return Mixture(sources, tuple(stages))


def llama(caches: Mapping[str, str]) -> dict[str, dict]:
    """LLaMA's seven sources, as `parse` reads them, from the token caches that you have of them.

    Shares are those of 2302.13971 Table 1 beside each other; the epochs there are the most that a
    source may be seen, rounded up to a tenth.

    Raises:
        ValueError: a name that is none of the seven.
    """
    for name in caches:
        if name not in LLAMA:
            raise ValueError(unknown_name("source of LLaMA", name, LLAMA))
    shares = {name: LLAMA[name] for name in LLAMA if name in caches}
    return {
        name: {"cache": caches[name], "weight": weight, "epochs": np.ceil(10 * epochs) / 10}
        for name, (weight, epochs) in shares.items()
    }


def upsampled(cache: str, *, length: int, share: float) -> dict[str, dict]:
    """One corpus with its documents of `length` tokens or more at `share` of the tokens.

    Llama 2 Long section 4.2 raises the weight of long documents so (2309.16039).
    """
    return {
        "long": {"cache": cache, "weight": share, "least": length},
        "short": {"cache": cache, "weight": 1 - share, "greatest": length - 1},
    }


@dataclass(frozen=True, eq=False)
class Plan:
    """A Plan is what each step of a run trains on.

    Attributes:
        mixture: the sources and stages.
        streams: of the sources, in their order.
        steps: of the run.
        tokens_per_step: predicted by all hosts together.
        seed: of the order of the blocks and of the questions.
        asks: makes questions in the text; None asks none.

    Raises:
        ValueError: a step is not a whole number of blocks, or a source would be seen too often.
    """

    mixture: Mixture
    streams: tuple[Stream, ...]
    steps: int
    tokens_per_step: int
    seed: int
    asks: WindowMaker | None = field(default=None, repr=False)

    def __post_init__(self):
        block = self.mixture.block
        if self.tokens_per_step % block or self.tokens_per_step < 1:
            raise ValueError(
                f"tokens_per_step must be a multiple of the longest window, {block}, got "
                f"{self.tokens_per_step}"
            )
        seen = self.seen(self.steps)
        for name, source in self.mixture.sources:
            if source.epochs and seen[f"epochs/{name}"] > source.epochs:
                raise ValueError(
                    f"source {name!r} would be seen {seen[f'epochs/{name}']:.2f} times, its epochs "
                    f"are {source.epochs:g}: lower its weight, train fewer steps, or raise epochs"
                )

    @property
    def edges(self) -> tuple[int, ...]:
        """The first step of each stage; steps count from 0."""
        ends = [round(stage.until * self.steps) for stage in self.mixture.stages]
        return (0, *ends[:-1])

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What a run of this plan is known by: texts, sources, stages and their steps."""
        texts = [stream.cache.fingerprint for stream in self.streams]
        without = [sorted(stream.without) for stream in self.streams]
        sources = [asdict(source) | {"cache": ""} for _, source in self.mixture.sources]
        stages = [asdict(stage) for stage in self.mixture.stages]
        what = (texts, without, sources, stages, self.edges, self.tokens_per_step, self.seed)
        return {"mixture": zlib.crc32(repr(what).encode())}

    def seen(self, step: int) -> dict[str, float]:
        """Share of each source in the tokens of the first `step` steps, and its epochs."""
        blocks = self._blocks(step)
        found = {}
        for (name, _), stream, count in zip(
            self.mixture.sources, self.streams, blocks, strict=True
        ):
            found[f"share/{name}"] = count / max(sum(blocks), 1)
            found[f"epochs/{name}"] = count * self.mixture.block / len(stream)
        return found

    def batch(self, step: int, index: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """The rows of one step that host `index` of `hosts` trains on: every hosts-th one.

        Returns:
            `tokens` int32 [B, T+1], loss `weights` float32 [B, T] of the targets tokens[1:], and
            `segment_start` int32 [B, T], where the document of each input token begins.

        Raises:
            ValueError: the rows do not divide over the hosts, or a cache is damaged.
        """
        stage = self._stage(step)
        length = self.mixture.stages[stage].length
        count = self.tokens_per_step // length
        if count % hosts:
            raise ValueError(f"{count} windows of a step do not divide over {hosts} hosts")
        rows = [self._window(step, row, length, stage) for row in range(index, count, hosts)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def iterator(self, mesh: Mesh | None = None) -> grain.DatasetIterator:
        """Returns an iterator of the steps' batches, of which each host reads its own rows.

        Its state is a small dict that JSON can hold.
        """
        index, hosts = jax.process_index(), jax.process_count()
        if mesh is not None:
            index, hosts = batch_share(mesh)
        batch = functools.partial(self.batch, index=index, hosts=hosts)
        steps = grain.MapDataset.range(self.steps).map(batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(steps.to_iter_dataset(options))

    def _stage(self, step: int) -> int:
        return int(np.searchsorted(self.edges, step, side="right")) - 1

    def _blocks(self, step: int) -> list[int]:
        """Blocks of each source in the first `step` steps."""
        found = np.zeros(len(self.streams), int)
        per_step = self.tokens_per_step // self.mixture.block
        for stage, start, stop in zip(
            self.mixture.stages, self.edges, (*self.edges[1:], self.steps), strict=True
        ):
            if step > start:
                weights = self.mixture.weights(stage)
                found += counts(weights, (min(step, stop) - start) * per_step)
        return found.tolist()

    def _window(self, step: int, row: int, length: int, stage: int) -> dict[str, np.ndarray]:
        block = self.mixture.block
        parts, per_step = block // length, self.tokens_per_step // block
        start = self.edges[stage]
        number = (step - start) * per_step + row // parts  # of the block in its stage
        weights = self.mixture.weights(self.mixture.stages[stage])
        before, after = counts(weights, number), counts(weights, number + 1)
        source = int(np.argmax(after - before))
        own = self._blocks(start)[source] + int(before[source])
        place: Any = self._order(source)[own]
        at = place * block + row % parts * length
        # The token before the first prediction belongs to the window before: BOS in its place.
        tokens, first = self.streams[source].read(at + 1, at + length + 1)
        tokens = np.concatenate([[self.streams[source].bos], tokens]).astype(np.int32)
        first = np.concatenate([[True], first])
        weight = np.where(first, 0.0, 1.0)
        if self.asks is not None:
            seed = (self.seed, source, own, row % parts)
            tokens, weight = self.asks.ask(tokens, first, np.random.default_rng(seed))
        begin = np.maximum.accumulate(np.where(first, np.arange(length + 1), 0))
        return {
            "tokens": tokens,
            "weights": weight[1:].astype(np.float32),
            "segment_start": begin[:-1].astype(np.int32),
        }

    @functools.cached_property
    def _order(self):
        return functools.cache(self._shuffled)

    def _shuffled(self, source: int) -> grain.MapDataset:
        """The blocks of a source in the order in which they are seen, epoch after epoch."""
        name, stream = self.mixture.sources[source][0], self.streams[source]
        blocks = -(-len(stream) // self.mixture.block)
        words = np.random.SeedSequence((self.seed, zlib.crc32(name.encode()))).generate_state(1)
        return grain.MapDataset.range(blocks).seed(int(words[0])).shuffle().repeat(_EPOCHS)


def counts(weights: Sequence[float], n: int) -> np.ndarray:
    """How many of the first n draws fall to each weight, int [k]; in whole numbers, with no drift.

    A draw more adds one to one count, and every count stays within the number of weights of its
    share.
    """
    total = sum(weights)
    parts = [max(round(w / total * _PARTS), 1) if w else 0 for w in weights]
    left, found = n, []
    for i, part in enumerate(parts):
        rest = sum(parts[i:])
        found.append(-(-left * part // rest) if rest else 0)
        left -= found[-1]
    return np.asarray(found, int)


def plan(
    mixture: Mixture,
    tokenizer: Tokenizer,
    *,
    steps: int,
    tokens_per_step: int,
    seed: int,
    bos: str,
    without: frozenset[int] = frozenset(),
    asks: WindowMaker | None = None,
) -> Plan:
    """Opens the caches of a mixture and plans what each step trains on.

    Args:
        mixture: the sources and stages.
        tokenizer: of the model; every cache must be made with it.
        steps: of the run.
        tokens_per_step: predicted by all hosts together.
        seed: of the order of the blocks.
        bos: name of the token that begins a document.
        without: hashes of texts that are never trained on, see `streams.held_out`.
        asks: makes questions in the text; None asks none.

    Raises:
        ValueError: a cache is missing or of another tokenizer, a source has no document, and what
            `Plan` refuses.
    """
    first, opened = tokenizer.special(bos), {}
    for name, source in mixture.sources:
        try:
            cache = token_cache.open_cache(source.cache, tokenizer)
            bounds = (source.least, source.greatest, source.cut)
            opened[name] = Stream(cache, first, *bounds, without)
        except ValueError as error:
            raise ValueError(f"source {name!r}: {error}") from error
    if asks is not None and asks.task_mixture.windows:
        raise ValueError(
            "samples that fill a window are made of documents in memory: leave windows out of the "
            "task mixture, or train on a corpus instead of a token cache"
        )
    if asks is not None and asks.task_mixture.first_sentence:
        raise ValueError(
            "a token cache has no sentences to ask for: set first_sentence=0, and teach keys alone"
        )
    return Plan(mixture, tuple(opened.values()), steps, tokens_per_step, seed, asks)


def _fields(kind: type, value: Mapping[str, Any], what: str) -> Any:
    known = [one.name for one in fields(kind)]
    for name in value:
        if name not in known:
            raise ValueError(unknown_name(f"field of a {what}", name, known))
    try:
        return kind(**value)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error

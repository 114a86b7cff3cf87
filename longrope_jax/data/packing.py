"""Training windows are packed from passages, with retrieval tasks in them, for grain iterators."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.sharding import batch_share
from longrope_jax.tasks import ARTICLES, Article, FirstSentence, Passkey, encode, parse

# Effectively infinite: repeat(None) overflows in grain when the batch size is 1.
_EPOCHS = 2**32
_DEPTHS = 4096  # that samples which fill a window are drawn from
_NEAREST = 16  # tokens: the least distance of a question to what it asks for, where there is room


@dataclass(frozen=True)
class TaskMixture:
    """A TaskMixture says how often training windows ask tasks.

    Two tasks are asked within passages; one that is too short for both asks one of them. Samples of
    any task can be windows of their own.

    Attributes:
        first_sentence: share of passages that ask for their first sentence at a random place.
        passkey: share of passages that state a key at a random place and ask for it later.
        answer_weight: loss weight of an answer's tokens; text has 1, prompts and facts have 0.
        every: tokens of a window for each question, on average. A passage of n tokens then asks
            n/`every` questions, of the two tasks in proportion to their shares (the first sentence
            at most once), and the distance of a question to what it asks for is log-uniform from
            16 tokens to n: windows of every length teach as much per token. 0: each passage asks
            each task once with the task's share, at a uniformly random place.
        windows: (task as `tasks.parse` reads it, share of windows) of samples that fill a window,
            as evaluation asks them, with loss weight on their answers alone.

    Raises:
        ValueError: a share lies outside 0..1, `answer_weight` is not positive, `every` is negative,
            or is set without a share, or a task of `windows` is unknown.
    """

    first_sentence: float = 0.0
    passkey: float = 0.0
    answer_weight: float = 1.0
    every: int = 0
    windows: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        # A config has lists, and a recipe is hashed.
        object.__setattr__(self, "windows", tuple((str(t), float(s)) for t, s in self.windows))
        shares = [share for _, share in self.windows]
        if any(not share > 0 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ValueError(f"shares of windows must be above 0 and 1 in all, got {self.windows}")
        for task, _ in self.windows:
            parse(task)
        if not (0 <= self.first_sentence <= 1 and 0 <= self.passkey <= 1):
            raise ValueError(f"first_sentence and passkey must lie in 0..1, got {self}")
        if not self.answer_weight > 0:
            raise ValueError(f"answer_weight must be positive, got {self.answer_weight}")
        if self.every < 0 or (self.every and not self.first_sentence + self.passkey):
            raise ValueError(f"every must be 0, or positive with a share of a task, got {self}")


@dataclass(frozen=True, eq=False)
class WindowMaker:
    """A WindowMaker makes a training window from a passage number and a generator.

    grain's random_map calls it. A window holds T + 1 tokens: BOS and a passage; if the passage ends
    before the window, another random passage follows as a segment of its own. A passage ends with
    its document or, with `shortest` below T, after a log-uniformly random number of tokens between
    `shortest` and T.

    Attributes:
        documents: the documents; there is one passage per sentence.
        tokenizer: the tokenizer of the documents.
        length: T, tokens that a window predicts.
        task_mixture: how often windows ask the tasks.
        first_sentence: the task that asks for the first sentence.
        passkey: the task that asks for a key.
        bos: name of the special token that begins a segment.
        shortest: least tokens of a passage that is cut at random; `length` cuts none.
        articles: what tasks about articles ask about, where windows are samples of them.

    Raises:
        ValueError: `shortest` lies outside 1..`length`, a passage would ask for several keys that
            have no names, or no document or article serves a task that fills windows.
    """

    documents: tuple[TokenizedDocument, ...]
    tokenizer: Tokenizer
    length: int
    task_mixture: TaskMixture
    first_sentence: FirstSentence
    passkey: Passkey
    bos: str
    shortest: int
    articles: tuple[Article, ...] = ()

    _index: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if not 1 <= self.shortest <= self.length:
            raise ValueError(f"shortest must lie in 1..{self.length} tokens, got {self.shortest}")
        mixture = self.task_mixture
        if mixture.every and mixture.passkey and not self.passkey.is_named:
            raise ValueError(
                f"every={mixture.every} states several keys in one text: their fact and prompt "
                f"need the field {{name}}, got {self.passkey.fact!r}"
            )
        if mixture.windows:
            self._check_windows()
        index = [(d, s) for d, doc in enumerate(self.documents) for s in range(len(doc.starts))]
        object.__setattr__(self, "_index", np.asarray(index, np.int32))

    def __len__(self) -> int:
        return len(self._index)

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns one window.

        Args:
            number: index of the first passage.
            rng: generator of everything random.

        Returns:
            `tokens` int32 [T+1], loss `weights` float32 [T] of the targets tokens[1:], and
            `segment_start` int32 [T], where the segment of each input token begins.
        """
        if self.task_mixture.windows and (task := self._drawn_task(rng)):
            return self._sample(task, rng)
        room = self.length + 1
        tokens, weights, starts = [], [], []
        while room > 0:
            size = round(self.shortest * (self.length / self.shortest) ** rng.random()) + 1
            segment, weight = self._segment(number, min(size, room), rng)
            starts.append(np.full(len(segment), self.length + 1 - room, np.int32))
            tokens.append(segment)
            weights.append(weight)
            room -= len(segment)
            number = int(rng.integers(len(self)))
        return {
            "tokens": np.concatenate(tokens).astype(np.int32),
            "weights": np.concatenate(weights)[1:].astype(np.float32),
            "segment_start": np.concatenate(starts)[:-1],
        }

    def _check_windows(self) -> None:
        about = [isinstance(parse(task), ARTICLES) for task, _ in self.task_mixture.windows]
        if any(about) and not self.articles:
            raise ValueError("windows of tasks about articles need articles: questions.load gives")
        if not all(about) and not self._long:
            raise ValueError(
                f"windows of tasks need a document of {self.length + 1} tokens from a sentence on: "
                "lower length, or give longer documents"
            )

    @functools.cached_property
    def _long(self) -> list[TokenizedDocument]:
        """Documents that hold a whole window after one of their sentences."""
        room = self.length + 1
        return [d for d in self.documents if (d.starts <= len(d.tokens) - room).any()]

    def _drawn_task(self, rng: np.random.Generator) -> str | None:
        """The task of a window, or None for text."""
        at = rng.random()
        for task, share in self.task_mixture.windows:
            if at < share:
                return task
            at -= share
        return None

    def _sample(self, name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A window that is a sample of a task, as `Task.samples` draws it for evaluation."""
        task = parse(name)
        found = task.samples(
            self.articles if isinstance(task, ARTICLES) else self._long,
            self.tokenizer,
            length=self.length + 1,
            count=1,
            seed=int(rng.integers(2**31)),
            bos=self.bos,
            first=int(rng.integers(_DEPTHS)),
        )
        weights = found.answer[0, 1:] * np.float32(self.task_mixture.answer_weight)
        start = np.zeros(self.length, np.int32)
        return {"tokens": found.tokens[0], "weights": weights, "segment_start": start}

    def _segment(self, number: int, room: int, rng: np.random.Generator):
        d, s = self._index[number]
        document = self.documents[d]
        sentence = document.sentences[s]
        text = document.tokens[document.starts[s] :][: room - 1]
        return self._compose(text, sentence, room, rng)

    def _compose(self, text, sentence, room: int, rng: np.random.Generator):
        """A segment: BOS and the text with questions in it, and the loss weights."""
        draw = self._questions if self.task_mixture.every else self._insertions
        insertions = draw(len(text), sentence, room, rng)
        pieces = [([self.tokenizer.special(self.bos)], 0.0)]
        done = 0
        for at, tokens, weight in insertions:
            pieces += [(text[done:at], 1.0), (tokens, weight)]
            done = at
        pieces.append((text[done:], 1.0))
        tokens = np.concatenate([p for p, _ in pieces])[:room]
        weights = np.concatenate([np.full(len(p), w) for p, w in pieces])[:room]
        return tokens, weights

    def ask(
        self, tokens: np.ndarray, first: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Asks for keys in packed text; questions push out the last tokens of their document.

        Args:
            tokens: int32 [n], documents that each begin with BOS.
            first: bool [n], which tokens are BOS.
            rng: generator of everything random.

        Returns:
            tokens int32 [n], and loss weights float64 [n].
        """
        edges, parts = [*np.flatnonzero(first).tolist(), len(tokens)], []
        for a, b in itertools.pairwise(edges):
            parts.append(self._compose(tokens[a + 1 : b], tokens[:0], b - a, rng))
        out, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
        return out.astype(np.int32), weights

    def _insertions(self, size: int, sentence, room: int, rng: np.random.Generator):
        """Draws the tasks of a segment: (place in the text, tokens, weight) in order of place."""
        task_mixture = self.task_mixture
        drawn = [
            (self._ask_first_sentence(sentence), task_mixture.first_sentence),
            (self._ask_passkey(rng), task_mixture.passkey),
        ]
        room -= 1  # BOS
        first = len(sentence)  # the first sentence itself stays whole
        insertions = []
        for i in rng.permutation(len(drawn)):
            groups, share = drawn[i]
            length = sum(len(tokens) for group in groups for tokens, _ in group)
            latest = min(size, room - length)
            # A short passage may have no room for the second task.
            if rng.random() >= share or latest < max([first, *(at for at, _, _ in insertions)]):
                continue
            if i == 0 and not first:  # text without sentences
                continue
            places = sorted(rng.integers(first, latest + 1, size=len(groups)).tolist())
            for at, group in zip(places, groups, strict=True):
                insertions += [(at, tokens, weight) for tokens, weight in group]
            room -= length
        return sorted(insertions, key=lambda insertion: insertion[0])

    def _questions(self, size: int, sentence, room: int, rng: np.random.Generator):
        """Draws as many questions as the text is long: (place in the text, tokens, weight)."""
        mixture, drawn, first_sentence = self.task_mixture, [], False
        for _ in range(int(size / mixture.every + rng.random())):
            at = rng.random() * (mixture.first_sentence + mixture.passkey)
            if at < mixture.first_sentence and not first_sentence and len(sentence):
                drawn.append(self._ask_first_sentence(sentence))
                first_sentence = True
            elif mixture.passkey:
                drawn.append(self._ask_passkey(rng))
        lengths = [sum(len(t) for group in groups for t, _ in group) for groups in drawn]
        first = len(sentence)  # the first sentence itself stays whole
        while drawn and min(size, room - 1 - sum(lengths)) < first:
            drawn, lengths = drawn[:-1], lengths[:-1]
        latest = min(size, room - 1 - sum(lengths))
        insertions = []
        for groups in drawn:
            for at, group in zip(_places(len(groups), first, latest, rng), groups, strict=True):
                insertions += [(at, tokens, weight) for tokens, weight in group]
        return sorted(insertions, key=lambda insertion: insertion[0])

    def _ask_first_sentence(self, sentence):
        """Returns one group of (tokens, weight) for one place: prompt and answer."""
        prompt = encode(self.tokenizer, self.first_sentence.prompt)
        end = encode(self.tokenizer, self.first_sentence.end)
        answer = np.concatenate([sentence, end])
        return [[(prompt, 0.0), (answer, self.task_mixture.answer_weight)]]

    def _ask_passkey(self, rng: np.random.Generator):
        """Returns two groups of (tokens, weight): the fact, and for a later place the question."""
        key, name = self.passkey.draw(rng), self.passkey.draw_name(rng)
        fact = self.tokenizer.encode(self.passkey.fact.format(key=key, name=name))
        prompt = self.tokenizer.encode(self.passkey.prompt.format(name=name))
        answer = self.tokenizer.encode(key)
        return [[(fact, 0.0)], [(prompt, 0.0), (answer, self.task_mixture.answer_weight)]]


def _places(groups: int, first: int, latest: int, rng: np.random.Generator) -> list[int]:
    """Places of a fact and its question, or of a question about the beginning of the text."""
    least, most = (_NEAREST, latest) if groups == 1 else (_NEAREST, latest - first)
    distance = int(min(least, most) * (max(most, 1) / max(min(least, most), 1)) ** rng.random())
    if groups == 1:
        return [max(first, distance)]
    start = int(rng.integers(first, latest - distance + 1))
    return [start, start + distance]


def answer_share(maker: WindowMaker, *, seed: int = 0, windows: int = 256) -> dict[str, float]:
    """Measures the answers' share of the tokens and of the loss weight over random windows."""
    weight = maker.task_mixture.answer_weight
    # Weight 2 distinguishes answers from text (1) and prompts (0), whatever the real weight is.
    marked = replace(maker, task_mixture=replace(maker.task_mixture, answer_weight=2.0))
    rng = np.random.default_rng(seed)
    marks = [marked(int(rng.integers(len(maker))), rng)["weights"] for _ in range(windows)]
    answer, text = np.concatenate(marks) == 2, np.concatenate(marks) == 1
    total = weight * answer.sum() + text.sum()
    return {
        "answer_tokens": float(answer.mean()),
        "answer_loss_weight": float(weight * answer.sum() / total),
    }


class Windows(Protocol):
    """Windows makes training windows by number, as a WindowMaker does."""

    def __len__(self) -> int:
        """Returns how many numbers there are."""
        ...

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns one window."""
        ...


def iterator(
    maker: Windows, *, batch: int, seed: int, mesh: Mesh | None = None
) -> grain.DatasetIterator:
    """Returns an endless iterator of shuffled batches {name: [B, ...]}.

    Its state is a small dict that JSON can hold. Each of several hosts gets its own part of the
    global batch of B = `batch` rows. On a mesh these are the rows that its devices hold, so that
    hosts along a sequence or tensor axis get the same rows. All hosts' rows together are those of
    one host with the same batch and seed.

    Raises:
        ValueError: the batch does not divide over the hosts.
    """
    index, hosts = jax.process_index(), jax.process_count()
    if mesh is not None:
        index, hosts = batch_share(mesh)
    if batch % hosts:
        raise ValueError(f"batch must be a multiple of the {hosts} hosts, got {batch}")
    dataset = grain.MapDataset.range(len(maker)).seed(seed).shuffle()
    # Dealt out after the draws, so that the hosts' rows together are those of one host alone.
    dataset = dataset.repeat(_EPOCHS).random_map(maker).slice(slice(index, None, hosts))
    dataset = dataset.batch(batch // hosts)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def training_windows(
    documents: Sequence[TokenizedDocument],
    tokenizer: Tokenizer,
    *,
    length: int,
    task_mixture: TaskMixture | None = None,
    first_sentence: FirstSentence | None = None,
    passkey: Passkey | None = None,
    bos: str = "<bos>",
    shortest: int | None = None,
    articles: Sequence[Article] = (),
) -> WindowMaker:
    """Returns a maker of training windows of `length` + 1 tokens from these documents.

    Args:
        documents: the documents.
        tokenizer: the tokenizer of the documents.
        length: tokens that a window predicts.
        task_mixture: how often windows ask the tasks; None is plain text.
        first_sentence, passkey: the tasks; None is their default.
        bos: name of the special token that begins a segment.
        shortest: least tokens of a passage that is cut at random; None cuts none, so that a passage
            fills its window or ends with its document.
        articles: what tasks about articles ask about, where `task_mixture.windows` has some.

    Raises:
        ValueError: as `WindowMaker`.
    """
    return WindowMaker(
        tuple(documents),
        tokenizer,
        length,
        task_mixture or TaskMixture(),
        first_sentence or FirstSentence(),
        passkey or Passkey(),
        bos,
        shortest or length,
        tuple(articles),
    )

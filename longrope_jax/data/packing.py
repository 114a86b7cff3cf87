"""Training windows: packed passages, retrieval taught in them, grain iterators over them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from longrope_jax.data.documents import TokenizedDocument
from longrope_jax.data.tasks import FirstSentence, Passkey, encode
from longrope_jax.data.tokenizers import Tokenizer
from longrope_jax.sharding import batch_share

# As good as endless; of a really endless dataset in batches of one row grain rounds the length up
# to a number that no index holds.
_EPOCHS = 2**32


@dataclass(frozen=True)
class TaskMixture:
    """How training windows teach the two tasks, the same for every method.

    Attributes:
        first_sentence: share of passages that ask for their first sentence at a random place.
        passkey: share of passages that state a key at a random place and ask for it later; a
            passage too short for both tasks gets one of them.
        answer_weight: loss weight of an answer's tokens; text has 1, prompts and facts 0.
    """

    first_sentence: float = 0.0
    passkey: float = 0.0
    answer_weight: float = 1.0

    def __post_init__(self):
        if not (0 <= self.first_sentence <= 1 and 0 <= self.passkey <= 1):
            raise ValueError(f"shares of taught passages must lie in 0..1, got {self}")
        if not self.answer_weight > 0:
            raise ValueError(f"answer_weight must be positive, got {self.answer_weight}")


@dataclass(frozen=True, eq=False)
class WindowMaker:
    """Makes one training window from a passage number and a random generator (grain's random_map).

    A window holds T + 1 tokens: BOS and a passage; where the passage ends before the window does,
    another random one follows as a segment of its own. A passage ends with its document or, with
    `shortest` below T, after a log-uniformly random number of tokens between `shortest` and T.
    """

    documents: tuple[TokenizedDocument, ...]
    tokenizer: Tokenizer
    length: int
    task_mixture: TaskMixture
    first_sentence: FirstSentence
    passkey: Passkey
    bos: str
    shortest: int

    _index: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if not 1 <= self.shortest <= self.length:
            raise ValueError(f"shortest must lie in 1..{self.length} tokens, got {self.shortest}")
        index = [(d, s) for d, doc in enumerate(self.documents) for s in range(len(doc.starts))]
        object.__setattr__(self, "_index", np.asarray(index, np.int32))

    def __len__(self) -> int:
        return len(self._index)

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens int32 [T+1], weights float32 [T] of the targets, segment_start int32 [T]."""
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

    def _segment(self, number: int, room: int, rng: np.random.Generator):
        d, s = self._index[number]
        document = self.documents[d]
        sentence = document.sentences[s]
        text = document.tokens[document.starts[s] :][: room - 1]
        insertions = self._insertions(len(text), sentence, room, rng)
        pieces = [([self.tokenizer.special(self.bos)], 0.0)]
        done = 0
        for at, tokens, weight in insertions:
            pieces += [(text[done:at], 1.0), (tokens, weight)]
            done = at
        pieces.append((text[done:], 1.0))
        tokens = np.concatenate([p for p, _ in pieces])[:room]
        weights = np.concatenate([np.full(len(p), w) for p, w in pieces])[:room]
        return tokens, weights

    def _insertions(self, size: int, sentence, room: int, rng: np.random.Generator):
        """(place in the text, tokens, weight) of what is taught, in order of place."""
        task_mixture = self.task_mixture
        drawn = [
            (self._ask_first_sentence(sentence), task_mixture.first_sentence),
            (self._ask_passkey(rng), task_mixture.passkey),
        ]
        room -= 1  # BOS
        first = len(sentence)  # nothing is put into the sentence itself
        insertions = []
        for i in rng.permutation(len(drawn)):
            groups, share = drawn[i]
            length = sum(len(tokens) for group in groups for tokens, _ in group)
            latest = min(size, room - length)
            # Both questions fit a long passage; of a short one the second is left out.
            if rng.random() >= share or latest < max([first, *(at for at, _, _ in insertions)]):
                continue
            places = sorted(rng.integers(first, latest + 1, size=len(groups)).tolist())
            for at, group in zip(places, groups, strict=True):
                insertions += [(at, tokens, weight) for tokens, weight in group]
            room -= length
        return sorted(insertions, key=lambda insertion: insertion[0])

    def _ask_first_sentence(self, sentence):
        """One group of (tokens, weight), inserted at one place: prompt and answer."""
        prompt = encode(self.tokenizer, self.first_sentence.prompt)
        end = encode(self.tokenizer, self.first_sentence.end)
        answer = np.concatenate([sentence, end])
        return [[(prompt, 0.0), (answer, self.task_mixture.answer_weight)]]

    def _ask_passkey(self, rng: np.random.Generator):
        """Two groups: the fact, and somewhere behind it prompt and answer."""
        key = self.passkey.draw(rng)
        fact = self.tokenizer.encode(self.passkey.fact.format(key=key))
        prompt, answer = self.tokenizer.encode(self.passkey.prompt), self.tokenizer.encode(key)
        return [[(fact, 0.0)], [(prompt, 0.0), (answer, self.task_mixture.answer_weight)]]


def answer_share(maker: WindowMaker, *, seed: int = 0, windows: int = 256) -> dict[str, float]:
    """Measured over random windows: answers' share of the tokens and of the loss weight."""
    weight = maker.task_mixture.answer_weight
    # Weight 2 tells answers from text (1) and prompts (0), whatever the real weight is.
    marked = replace(maker, task_mixture=replace(maker.task_mixture, answer_weight=2.0))
    rng = np.random.default_rng(seed)
    marks = [marked(int(rng.integers(len(maker))), rng)["weights"] for _ in range(windows)]
    answer, text = np.concatenate(marks) == 2, np.concatenate(marks) == 1
    total = weight * answer.sum() + text.sum()
    return {
        "answer_tokens": float(answer.mean()),
        "answer_loss_weight": float(weight * answer.sum() / total),
    }


def iterator(
    maker: WindowMaker, *, batch: int, seed: int, mesh: Mesh | None = None
) -> grain.DatasetIterator:
    """Endless shuffled batches {name: [B, ...]}; its state is a small JSON-able dict.

    On several hosts each gets its own part of the global batch of B = `batch`: on a mesh the rows
    that its devices hold, which hosts along a sequence or tensor axis share.

    Raises:
        ValueError: a batch that does not divide over the hosts, or fewer passages than hosts.
    """
    index, hosts = jax.process_index(), jax.process_count()
    if mesh is not None:
        index, hosts = batch_share(mesh)
    if batch % hosts or len(maker) < hosts:
        raise ValueError(f"a batch of {batch} windows does not divide over {hosts} hosts")
    dataset = grain.MapDataset.range(len(maker)).seed(seed).shuffle()
    dataset = dataset.slice(slice(index, None, hosts)).repeat(_EPOCHS)
    dataset = dataset.random_map(maker).batch(batch // hosts)
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
) -> WindowMaker:
    """Windows of `length` + 1 tokens from these documents; plain text without `task_mixture`.

    Without `shortest` a passage fills its window or ends with its document.
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
    )

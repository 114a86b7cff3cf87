"""One program to compile, and its text form: "train llama2_long_7b 32768 v5p:4x4x4 fsdp=64"."""

import dataclasses
import math
import re

from longrope_jax import llama
from longrope_jax.errors import unknown_name
from longrope_jax.sharding import AXES

PROGRAMS = ("train", "prefill", "decode")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A program, its model, its length and the slice it is compiled for.

    Attributes:
        program: of PROGRAMS.
        model: preset of `llama`.
        length: tokens per sequence; prefill fills a cache of so many, decode reads one.
        topology: slice as libtpu names it, chip:AxBxC.
        mesh: (axis, size) of each mesh axis above 1; their product is the number of chips.
        remat: policy of `llama` (train).
        context: "all_gather" or "ring", where the mesh has a sequence axis (train).
        rows: sequences per data and fsdp shard at one time.
    """

    program: str
    model: str
    length: int
    topology: str
    mesh: tuple[tuple[str, int], ...]
    remat: str = "full"
    context: str = "all_gather"
    rows: int = 1

    @property
    def chips(self) -> int:
        """In the slice."""
        return math.prod(int(n) for n in self.topology.partition(":")[2].split("x"))

    @property
    def batch(self) -> int:
        """Sequences at one time, on all chips together."""
        return self.rows * self.axis("data") * self.axis("fsdp")

    def axis(self, name: str) -> int:
        """Size of a mesh axis."""
        return dict(self.mesh).get(name, 1)

    def config(self) -> llama.LlamaConfig:
        """The model as it is compiled: bfloat16 products; served weights are bfloat16 too."""
        if self.program != "train":
            return llama.preset(self.model, dtype="bfloat16", param_dtype="bfloat16")
        options = {"remat": self.remat, "context_parallel": self.context, "dtype": "bfloat16"}
        return llama.preset(self.model, **options)

    def accumulated(self, tokens: int) -> int:
        """Microbatches of a global batch of `tokens`.

        Raises:
            ValueError: the batch is no whole number of them.
        """
        if tokens % (self.batch * self.length):
            raise ValueError(
                f"{self}: a batch of {tokens:,} tokens is no multiple of {self.batch} sequences of "
                f"{self.length:,}"
            )
        return tokens // (self.batch * self.length)

    def __str__(self):
        default = {f.name: f.default for f in dataclasses.fields(self)}
        options = [(n, getattr(self, n)) for n in ("remat", "context", "rows")]
        words = [*self.mesh, *((n, v) for n, v in options if v != default[n])]
        head = f"{self.program} {self.model} {self.length} {self.topology}"
        return " ".join([head, *(f"{name}={value}" for name, value in words)])

    @property
    def slug(self) -> str:
        """File name."""
        return str(self).replace(" ", "-").replace(":", "-").replace("=", "")


def parse(text: str) -> Cell:
    """A cell from its text: program, model, length, topology, then mesh axes and options.

    Raises:
        ValueError: a word missing or unknown, or a mesh that is not the slice's size.
    """
    words = text.split()
    if len(words) < 4 or not words[2].isdigit():
        raise ValueError(f"cell {text!r}: expected 'program model length topology axis=n ...'")
    (program, model, length, topology), rest = words[:4], words[4:]
    if program not in PROGRAMS:
        raise ValueError(unknown_name("program", program, PROGRAMS))
    if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise ValueError(f"cell {text!r}: a slice is chip:AxB or chip:AxBxC, not {topology!r}")
    given = dict(_option(text, word) for word in rest)
    mesh = tuple((axis, given.pop(axis)) for axis in list(given) if axis in AXES)
    cell = Cell(program, model, int(length), topology, mesh, **given)
    if math.prod(n for _, n in mesh) != cell.chips:
        raise ValueError(f"cell {text!r}: the mesh does not multiply to {cell.chips} chips")
    cell.config()
    return cell


def _option(text: str, word: str) -> tuple[str, int | str]:
    name, _, value = word.partition("=")
    known = (*AXES, "remat", "context", "rows")
    if name not in known:
        raise ValueError(unknown_name("option of a cell", name, known))
    if name in ("remat", "context"):
        return name, value
    if not value.isdigit():
        raise ValueError(f"cell {text!r}: {word!r} is no whole number")
    return name, int(value)

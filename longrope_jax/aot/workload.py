"""What is compiled: a training, prefill or decode step of a model at one length on one slice."""

import dataclasses
import math
import re
from pathlib import Path

from longrope_jax import llama, weights
from longrope_jax.errors import unknown_name
from longrope_jax.sharding import AXES

PROGRAMS = ("train", "prefill", "decode")
# Serving divides heads over at most so many chips, as docs/scaling.md does; the rest serve rows.
_TENSOR = 8


@dataclasses.dataclass(frozen=True)
class Workload:
    """A program, its model, its length, and the slice and mesh it is compiled for.

    Attributes:
        program: One of PROGRAMS.
        model: A preset of `llama`, or the path of a checkpoint, of which only the shape is read.
        length: Tokens per sequence; a prefill fills a cache of this size, a decode step reads one.
        topology: The slice as libtpu names it, chip:AxB or chip:AxBxC.
        mesh: (axis, size) of each mesh axis above 1; the sizes multiply to the number of chips.
        remat: What each layer saves for the backward pass, a policy of `llama` (training only).
        context: "all_gather" or "ring", where the mesh has a sequence axis (training only).
        rows: Sequences that one shard of the data and fsdp axes holds at one time.

    Raises:
        ValueError: A program, model, axis or policy is unknown, or the mesh has another number of
            chips than the slice.
    """

    program: str
    model: str
    length: int
    topology: str
    mesh: tuple[tuple[str, int], ...]
    remat: str = "full"
    context: str = "all_gather"
    rows: int = 1

    def __post_init__(self):
        if self.program not in PROGRAMS:
            raise ValueError(unknown_name("program", self.program, PROGRAMS))
        for name in ("length", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for axis, _ in self.mesh:
            if axis not in AXES:
                raise ValueError(unknown_name("mesh axis", axis, AXES))
        if math.prod(size for _, size in self.mesh) != self.chips:
            raise ValueError(
                f"mesh {mesh_text(self.mesh)} does not multiply to the {self.chips} chips of "
                f"{self.topology}"
            )
        self.config()

    @property
    def chips(self) -> int:
        """The number of chips in the slice."""
        return chips_of(self.topology)

    @property
    def batch(self) -> int:
        """The number of sequences that all chips together hold at one time."""
        return self.rows * self.axis("data") * self.axis("fsdp")

    def axis(self, name: str) -> int:
        """The size of a mesh axis, 1 where the mesh does not have it."""
        return dict(self.mesh).get(name, 1)

    def config(self) -> llama.LlamaConfig:
        """The model as it is compiled: products in bfloat16, and bfloat16 weights in serving."""
        changes = {"param_dtype": "bfloat16"}
        if self.program == "train":
            changes = {"remat": self.remat, "context_parallel": self.context}
        return dataclasses.replace(shape_of(self.model), dtype="bfloat16", **changes)

    def accumulated(self, tokens: int) -> int:
        """The number of microbatches in a training step of `tokens`.

        Raises:
            ValueError: The step is not a whole number of them.
        """
        if tokens % (self.batch * self.length):
            raise ValueError(
                f"tokens per batch must be a multiple of {self.batch} sequences of {self.length:,} "
                f"tokens, got {tokens:,}: take another batch, or a mesh with less data and fsdp"
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
        """The name of the workload's result file, without its ending."""
        return re.sub(r"[ :/]", "-", str(self)).replace("=", "")


def shape_of(model: str) -> llama.LlamaConfig:
    """The shape of a preset or of a checkpoint.

    Raises:
        ValueError: `model` is neither, or the checkpoint cannot be read.
    """
    if model in llama.PRESETS:
        return llama.PRESETS[model]
    if Path(model).exists():
        return weights.open_checkpoint(model).config
    raise ValueError(unknown_name("model preset", model, llama.PRESETS) + ", and no such file")


def chips_of(topology: str) -> int:
    """The number of chips in a slice such as v5p:4x4x4.

    Raises:
        ValueError: The text has another form.
    """
    if not re.fullmatch(r"\w+:\d+(x\d+)*", topology):
        raise ValueError(f"topology must read chip:AxB or chip:AxBxC, got {topology!r}")
    return math.prod(int(n) for n in topology.partition(":")[2].split("x"))


def default_mesh(
    program: str, config: llama.LlamaConfig, length: int, topology: str, tokens: int
) -> tuple[tuple[str, int], ...]:
    """A mesh for whoever names none.

    Training divides parameters over as many chips as the batch has sequences (fsdp), and sequences
    over the rest. Serving divides the heads over up to 8 chips (tensor), and rows over the rest.

    Args:
        program: One of PROGRAMS.
        config: The model's shape.
        length: Tokens per sequence.
        topology: The slice.
        tokens: Tokens of a training step.
    """
    chips = chips_of(topology)
    if program == "train":
        fsdp = math.gcd(chips, max(tokens // length, 1))
        sizes = {"fsdp": fsdp, "sequence": chips // fsdp}
    else:
        tensor = math.gcd(chips, config.n_kv_heads, _TENSOR)
        sizes = {"data": chips // tensor, "tensor": tensor}
    return tuple((axis, size) for axis, size in sizes.items() if size > 1)


def mesh_text(mesh: tuple[tuple[str, int], ...]) -> str:
    """The mesh axes and their sizes, as `--mesh` takes them."""
    return ",".join(f"{axis}={size}" for axis, size in mesh) or "one chip"

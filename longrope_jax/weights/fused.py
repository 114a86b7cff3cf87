"""Phi-3 stores queries, keys and values as one tensor, and gate and up as another."""

import numpy as np

from longrope_jax.llama import LlamaConfig
from longrope_jax.weights.files import TensorSource

QKV, GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
ATTENTION, MLP = "self_attn.{}_proj.weight", "mlp.{}_proj.weight"


class SplitSource:
    """A SplitSource shows rows of fused tensors as tensors of their own.

    Attributes:
        where, shapes, kinds: as `TensorSource`.
    """

    def __init__(self, source: TensorSource, cuts: dict[str, dict[str, int]]):
        """Splits the tensors whose names end with a key of `cuts` into {name: rows}, in order."""
        self.where, self._source = source.where, source
        self.shapes, self.kinds = dict(source.shapes), dict(source.kinds)
        self._at: dict[str, tuple[str, int]] = {}
        for name, shape in source.shapes.items():
            ending = next((end for end in cuts if name.endswith(end)), None)
            if ending is None or len(shape) != 2 or shape[0] != sum(cuts[ending].values()):
                continue  # of another shape: the missing parts are then an error with a name
            first = 0
            del self.shapes[name], self.kinds[name]  # a part may have the name of the whole
            for part, rows in cuts[ending].items():
                full = name.removesuffix(ending) + part
                self._at[full], self.shapes[full] = (name, first), (rows, shape[1])
                self.kinds[full] = source.kinds[name]
                first += rows

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop` of a tensor, a fused one's part or another."""
        whole_name, first = self._at.get(name, (name, 0))
        return self._source.rows(whole_name, first + start, first + stop)


def joined(
    tensors: dict[str, list],
    qkv: str = QKV,
    gate_up: str = GATE_UP,
    attention: str = ATTENTION,
    mlp: str = MLP,
) -> dict[str, list]:
    """Returns the tensors of a Llama under Phi-3's names, each a list of its parts in order."""
    endings = {attention.format(one): qkv for one in "qkv"}
    endings |= {mlp.format(one): gate_up for one in ("gate", "up")}
    found: dict[str, list] = {}
    for name, parts in tensors.items():
        ending = next((end for end in endings if name.endswith(end)), None)
        full = name if ending is None else name.removesuffix(ending) + endings[ending]
        found.setdefault(full, []).extend(parts)
    return found


def split(
    source: TensorSource,
    config: LlamaConfig,
    qkv: str = QKV,
    gate_up: str = GATE_UP,
    attention: str = ATTENTION,
    mlp: str = MLP,
) -> SplitSource:
    """Returns the tensors of a Phi-3 under the names of a Llama; the names are endings."""
    c = config
    rows = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim
    heads = {attention.format(one): n for one, n in zip("qkv", rows, strict=True)}
    return SplitSource(
        source, {qkv: heads, gate_up: {mlp.format(one): c.d_ff for one in ("gate", "up")}}
    )

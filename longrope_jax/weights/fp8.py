"""Weights in 8-bit floats with a scale per block are dequantised while they are read.

The form is DeepSeek's: `weight` in F8_E4M3 [rows, columns] and `weight_scale_inv`, one factor for
each block of 128 by 128 or whatever `weight_block_size` says, or one for all of it.
Source: integrations/finegrained_fp8.py of transformers 5.24, `_dequantize_fp8_weight`.
"""

import numpy as np

from longrope_jax.weights.files import TensorSource

KIND, SCALE = "F8_E4M3", "_scale_inv"
METHODS = ("fp8",)
ACTIVATIONS = ".activation_scale"  # of products in 8 bits, which are not done here


class ScaledSource:
    """A ScaledSource shows 8-bit weights times their scales, in float32.

    Attributes:
        where, shapes, kinds: as `TensorSource`, without the scales.
    """

    def __init__(self, source: TensorSource, block: tuple[int, int] | None):
        """Takes the block that shares a scale, [rows, columns]; None is the whole tensor.

        Raises:
            ValueError: a weight has no scale, or scales of another shape.
        """
        self.where, self._source, self._block = source.where, source, block
        scales = {name for name in source.shapes if name.endswith(SCALE)}
        self.shapes = {name: shape for name, shape in source.shapes.items() if name not in scales}
        self.kinds = {name: source.kinds[name] for name in self.shapes}
        for name, kind in self.kinds.items():
            if kind != KIND:
                continue
            shape, found = self.shapes[name], source.shapes.get(name + SCALE)
            wanted = (
                [()]
                if block is None
                else [tuple(-(-n // b) for n, b in zip(shape, block, strict=False))]
            )
            if len(shape) != 2 or found not in [*wanted, *([(1,)] if block is None else [])]:
                raise ValueError(
                    f"{source.where}: {name[:100]!r} {list(shape)} in 8 bits needs scales "
                    f"{list(wanted[0])} under {SCALE}, got {found}"
                )

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Returns rows `start` to `stop` of a tensor, dequantised to float32 if it has 8 bits."""
        values = self._source.rows(name, start, stop)
        if self.kinds[name] != KIND:
            return values
        values, scales = values.astype(np.float32), name + SCALE
        shape = self._source.shapes[scales]
        if self._block is None:
            one = self._source.rows(scales, 0, 1).reshape(-1)[0]
            return values * np.float32(one)
        down, across = self._block
        first, last = start // down, -(-stop // down)
        grid = self._source.rows(scales, first, min(last, shape[0])).astype(np.float32)
        rows = np.arange(start, stop) // down - first
        columns = np.arange(values.shape[1]) // across
        return values * grid[rows][:, columns]

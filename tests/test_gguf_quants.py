"""K-quants against decoders written from the published block layouts (ggml's ggml-common.h).

The tensors are quantised here, by the simplest encoder that fills every field of a block; so what
is read must also be near what was meant.
"""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="LOUD SKIP: pip install gguf to test GGUF")

from longrope_jax.weights.gguf_file import GGUFSource, read_header  # noqa: E402

ROWS, COLUMNS = 6, 512
BLOCK = 256


def tensor():
    """Normal numbers, each row and group of columns of another size and mean, some far out."""
    rng = np.random.default_rng(5)
    scale = np.exp(rng.normal(size=(ROWS, COLUMNS // 32))).repeat(32, axis=1)
    shift = (rng.normal(size=(ROWS, COLUMNS // 32)) * 0.5).repeat(32, axis=1)
    x = (rng.standard_t(5, size=(ROWS, COLUMNS)) + shift) * scale * 0.02
    return x.astype(np.float32)


# Q4_K: float16 d, float16 dmin, 12 bytes of eight 6-bit scales and eight 6-bit minima, 128 bytes of
# nibbles. Value = d * scale * nibble - dmin * minimum, for eight groups of 32.


def encode_q4_k(x):
    groups = x.reshape(8, 32)
    low = np.maximum(-groups.min(1), 0)
    step = np.maximum(groups.max(1) + low, 1e-8) / 15
    d, dmin = np.float16(step.max() / 63), np.float16(low.max() / 63)
    scale = np.clip(np.round(step / float(d)), 1, 63).astype(int)
    minimum = np.clip(np.round(low / max(float(dmin), 1e-8)), 0, 63).astype(int)
    nibbles = (groups + float(dmin) * minimum[:, None]) / (float(d) * scale[:, None])
    nibbles = np.clip(np.round(nibbles), 0, 15).astype(int)
    packed = [0] * 12
    for j in range(4):
        packed[j] = scale[j] | (scale[j + 4] >> 4) << 6
        packed[j + 4] = minimum[j] | (minimum[j + 4] >> 4) << 6
        packed[j + 8] = scale[j + 4] & 15 | (minimum[j + 4] & 15) << 4
    bytes_ = [nibbles[2 * j] | nibbles[2 * j + 1] << 4 for j in range(4)]
    head = np.array([d, dmin], "<f2").tobytes()
    return head + bytes(packed) + np.concatenate(bytes_).astype(np.uint8).tobytes()


def decode_q4_k(block):
    d, dmin = (float(v) for v in np.frombuffer(block[:4], "<f2"))
    s, quants, values = block[4:16], block[16:], []
    for j in range(8):
        if j < 4:
            scale, minimum = s[j] & 63, s[j + 4] & 63
        else:
            scale = s[j + 4] & 15 | (s[j - 4] >> 6) << 4
            minimum = s[j + 4] >> 4 | (s[j] >> 6) << 4
        for byte in quants[32 * (j // 2) : 32 * (j // 2) + 32]:
            nibble = byte >> 4 if j % 2 else byte & 15
            values.append(d * scale * nibble - dmin * minimum)
    return values


# Q6_K: 128 bytes of low nibbles, 64 bytes of upper pairs of bits, sixteen int8 scales, float16 d.
# Value = d * scale * (6 bits - 32), for sixteen groups of 16. In each half of 128 values, value l,
# l + 32, l + 64 and l + 96 share the byte l of the upper bits.


def encode_q6_k(x):
    groups = x.reshape(16, 16)
    at = np.abs(groups).argmax(1)
    peak = groups[np.arange(16), at]
    step = np.where(peak == 0, 1e-8, -peak / 32)  # the largest becomes -32, so scales have signs
    d = np.float16(np.abs(step).max() / 127)
    scale = np.round(step / float(d)).astype(int)
    scale[scale == 0] = 1
    q = np.clip(np.round(groups / (float(d) * scale[:, None])), -32, 31).astype(int) + 32
    low, high = [], []
    for half in q.reshape(2, 4, 32):
        low += [half[0] & 15 | (half[2] & 15) << 4, half[1] & 15 | (half[3] & 15) << 4]
        high.append(sum((half[k] >> 4) << 2 * k for k in range(4)))
    parts = np.concatenate([*low, *high]).astype(np.uint8).tobytes()
    return parts + scale.astype(np.int8).tobytes() + np.array([d], "<f2").tobytes()


def decode_q6_k(block):
    low, high, d = block[:128], block[128:192], float(np.frombuffer(block[208:], "<f2")[0])
    scale, values = np.frombuffer(block[192:208], np.int8), []
    for at in range(BLOCK):
        half, k, l = at // 128, at % 128 // 32, at % 32
        byte = low[64 * half + 32 * (k % 2) + l]
        q = (byte >> 4 if k >= 2 else byte & 15) | (high[32 * half + l] >> 2 * k & 3) << 4
        values.append(d * int(scale[at // 16]) * (q - 32))
    return values


KINDS = {
    "Q4_K": (encode_q4_k, decode_q4_k, 0.12),
    "Q6_K": (encode_q6_k, decode_q6_k, 0.03),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_tensor_is_read_as_its_layout_says(tmp_path, kind):
    encode, decode, allowed = KINDS[kind]
    x = tensor()
    blocks = [[encode(part) for part in row.reshape(-1, BLOCK)] for row in x]
    raw_dtype = gguf.GGMLQuantizationType[kind]
    assert gguf.GGML_QUANT_SIZES[raw_dtype] == (BLOCK, len(blocks[0][0]))
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    data = np.stack([np.frombuffer(b"".join(row), np.uint8) for row in blocks])
    writer.add_tensor("t", data, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "q.gguf", read_header(tmp_path / "q.gguf"))
    found = np.concatenate([source.rows("t", at, at + 2) for at in range(0, ROWS, 2)])
    expected = np.array([np.concatenate([decode(block) for block in row]) for row in blocks])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * np.abs(x).max())
    error = np.sqrt(((found - x) ** 2).mean(1)) / x.std(1)
    assert error.max() < allowed

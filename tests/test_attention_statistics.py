import jax.numpy as jnp
import numpy as np
import pytest

from longrope_jax import llama, rotary
from longrope_jax.analysis import decay
from longrope_jax.evaluation.attention_statistics import query_key_moments

CONFIG = llama.LlamaConfig(
    vocab_size=11, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=16
)
METHOD = rotary.RoPE(base=50.0)


def rope(x, positions, inv_freq, layout):
    """Rotation by complex numbers in float64, features beyond the pairs unchanged."""
    x, R = np.asarray(x, np.float64).copy(), len(inv_freq)
    a, b = (slice(0, R), slice(R, 2 * R)) if layout == "half" else (slice(0, 2 * R, 2),) * 2
    b = b if layout == "half" else slice(1, 2 * R, 2)
    z = (x[..., a] + 1j * x[..., b]) * np.exp(1j * np.outer(positions, inv_freq))[:, None]
    x[..., a], x[..., b] = z.real, z.imag
    return x


def unrotated(params, tokens):
    """Queries and keys [L, B, T, heads, H], seen by a hook on the rotation of a plain forward."""
    seen = []
    original = llama.rotary_lib.rotate

    def spy(x, phase, **options):
        seen.append(np.asarray(x))
        return original(x, phase, **options)

    rot = rotary.make(METHOD, head_dim=6, seq_len=tokens.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama.rotary_lib, "rotate", spy)
        patch.setattr(llama.nn, "scan", unrolled)
        llama.Llama(CONFIG).apply({"params": params}, tokens, rotary=rot)
    return np.stack(seen[::2]), np.stack(seen[1::2])


def unrolled(block, *, length, **_):
    """A stand-in for nn.scan: the layers one after the other, so that arrays are concrete."""

    class Layers(llama.nn.Module):
        config: llama.LlamaConfig
        score_rule: rotary.ScoreRule | None = None

        @llama.nn.compact
        def __call__(self, x, *rest):
            params = self.scope.root.variables()["params"]["layers"]
            for layer in range(length):
                weights = llama.jax.tree.map(lambda p, at=layer: p[at], params)
                x, _ = block(self.config, parent=None).apply({"params": weights}, x, *rest)
            return x, None

    return Layers


def test_moments_are_those_of_the_queries_and_keys_that_the_model_rotates(random_params):
    params = random_params(CONFIG)
    tokens = np.random.default_rng(0).integers(0, 11, (3, 7))
    q, k = unrotated(params, jnp.asarray(tokens))
    expected = np.zeros((2, 4, 6, 6))
    pairs = [(m, n) for m in range(7) for n in range(m)]
    for m, n in pairs:
        key = np.repeat(k[:, :, n], 2, axis=2)
        expected += np.einsum("LBNH,LBNE->LNHE", q[:, :, m], key) / (len(pairs) * 3)
    rot = rotary.make(METHOD, head_dim=6, seq_len=7)
    found = query_key_moments(CONFIG, params, rot, tokens, batch_size=2)  # the last is not full
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("layout", rotary.LAYOUTS)
@pytest.mark.parametrize("text", ["rope", "xpos", "yarn:factor=4,original_length=8", "partial:"
                                  "inner=(rope),fraction=0.5"])  # fmt: skip
def test_expected_score_is_the_mean_of_rotated_dot_products(text, layout):
    rng, spec, distance = np.random.default_rng(1), rotary.parse(text), 5
    q, k = rng.normal(size=(2, 40, 1, 8))
    moments = np.einsum("TNH,TNE->NHE", q, k) / 40
    f = spec.frequencies(head_dim=8, seq_len=64)
    m = rng.integers(distance, 60, 40)
    turned = rope(q, m, f.inv_freq, layout), rope(k, m - distance, f.inv_freq, layout)
    R = len(f.inv_freq)
    gain = np.exp(f.log_decay * distance) * f.amplitude**2
    width = np.ones(8)
    width[: 2 * R] = np.tile(gain, 2) if layout == "half" else np.repeat(gain, 2)
    dots = (turned[0] * turned[1] * width).sum(-1).mean() / np.sqrt(8)
    found = decay.expected_score(spec, [0, distance], moments, layout=layout, seq_len=64)
    assert found.shape == (1, 2)
    assert found[0, 1] == pytest.approx(dots, abs=1e-12)


def test_all_ones_moments_give_the_curve_of_figure_4():
    distances = np.arange(0, 5000, 7)
    for spec in (rotary.RoPE(), rotary.XPos(), rotary.parse("partial:inner=(rope),fraction=0.5")):
        found = decay.expected_score(spec, distances, np.ones((64, 64)))
        expected = decay.score(spec, distances, head_dim=64)
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_methods_whose_scores_need_more_than_a_distance_are_known():
    alone = decay.depends_on_distance_alone
    f = rotary.Frequencies(np.ones(2))
    assert alone(f) and alone(rotary.XPos().frequencies(head_dim=4, seq_len=9))
    assert not alone(rotary.Frequencies(np.ones(2), start_count=3, start_inv_freq=np.ones(2)))
    assert not alone(rotary.Frequencies(np.ones(2), logn_length=10.0))


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("rerope:window=512", True),
        ("leaky_rerope:window=512,factor=8", True),
        ("string:original_length=4096", True),
        ("self_extend:window=512,group=8", False),
        ("dual_chunk:original_length=4096", False),
        ("fope:original_length=512,n_kv_heads=2", False),
    ],
)
def test_remapped_scores_are_a_function_of_distance_where_the_formula_is(text, alone):
    f = rotary.parse(text).frequencies(head_dim=64, seq_len=8192)
    assert decay.depends_on_distance_alone(f) == alone


def test_expected_score_under_remapped_positions_is_that_of_ones():
    distances, ones = np.arange(0, 3000, 7), np.ones((64, 64))
    spec = rotary.parse("rerope:window=512")
    expected = decay.score(spec, distances, head_dim=64)
    np.testing.assert_allclose(decay.expected_score(spec, distances, ones), expected, atol=1e-10)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: query_key_moments(CONFIG, {}, None, np.zeros((1, 1), int)), "T at least 2"),
        (lambda: query_key_moments(CONFIG, {}, None, np.zeros(4, int)), "T at least 2"),
        (lambda: decay.expected_score(METHOD, [1], np.ones((4, 6))), r"\[..., H, H\]"),
        (lambda: decay.expected_score(METHOD, [-1], np.ones((4, 4))), "not negative"),
        (lambda: decay.expected_score(METHOD, [1], np.ones((4, 4)), layout="x"), "rotary layout"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()

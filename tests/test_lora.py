"""LoRA: what trains moves, what is frozen doesn't by a bit, and numpy gets the same gradient."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from longrope_jax import llama, rotary, sharding
from longrope_jax.training import checkpoints, loop, lora, optimizer
from longrope_jax.training import step as steps

V, D, L, N, K, H, F, T, B = 64, 16, 2, 4, 2, 8, 32, 12, 8
CONFIG = llama.LlamaConfig(V, D, L, N, K, H, F, attention="reference")
ADAMW = optimizer.OptimizerConfig(0.02, 10, warmup_steps=0, weight_decay=0.1)
ROPE = rotary.make(rotary.RoPE(), head_dim=H, seq_len=T)
PLUS = lora.trainable("lora_plus", rank=3, alpha=6.0)


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def batch(mesh, accumulation=1, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        "tokens": rng.integers(0, V, (B, T + 1), dtype=np.int32),
        "weights": rng.integers(0, 3, (B, T)).astype(np.float32),
        "segment_start": np.where(np.arange(T) < 5, 0, 5)[None].repeat(B, 0).astype(np.int32),
    }
    arrays = {k: x.reshape(accumulation, -1, x.shape[1]) for k, x in arrays.items()}
    return sharding.shard_batch(mesh, arrays, axis=1)


def loss(params, rows):
    """Mean loss of one microbatch, written with whole logits."""
    hidden, _ = llama.Llama(CONFIG).apply(
        {"params": params},
        rows["tokens"][0, :, :-1],
        rotary=ROPE,
        segment_start=rows["segment_start"][0],
    )
    log_p = jax.nn.log_softmax(llama.unembed(CONFIG, params, hidden))
    picked = jnp.take_along_axis(log_p, rows["tokens"][0, :, 1:, None], -1)[..., 0]
    return -(picked * rows["weights"][0]).sum() / rows["weights"][0].sum()


def host(tree):
    return {"/".join(path): np.array(x) for path, x in flatten_dict(tree).items()}


def trained(params, settings, mesh=None, n=2, accumulation=1):
    """(state, frozen) after n steps from the parameters."""
    mesh = mesh or one_device()
    frozen = lora.split(settings, params)[1]
    state = steps.init_state(CONFIG, ADAMW, mesh, params=params, lora=settings, seed=5)
    step = steps.make_train_step(CONFIG, ADAMW, mesh, settings)
    for seed in range(n):
        state, _ = step(state, ROPE, batch(mesh, accumulation, seed), frozen)
    return state, frozen


@pytest.fixture(scope="module")
def base(random_params):
    return random_params(CONFIG)


@pytest.mark.parametrize("name", ["lora", "lora_plus"])
def test_exactly_the_named_leaves_move(name, base):
    settings = lora.trainable(name, rank=3)
    before = host(base)
    state, frozen = trained(base, settings)
    after = host(lora.merge(settings, state.params, frozen))
    assert set(before) == set(after)
    targets = {f"layers/attention/{w}" for w in ("wq", "wk", "wv", "wo")}
    if name == "lora_plus":
        targets |= {path for path in before if path.endswith("scale")} | {"embed"}
    moved = {path for path in before if (before[path] != after[path]).any()}
    assert moved == targets
    assert "unembed" not in moved
    for path, x in host(base).items():
        np.testing.assert_array_equal(x, before[path])  # the caller's parameters are not donated


def test_subsets_are_the_rows_of_longloras_table_2(base):
    norms = {path for path in host(base) if path.endswith("scale")}
    rows = {"lora": set(), "lora_norm": norms, "lora_embed": {"embed"}}
    for name, expected in (rows | {"lora_plus": norms | {"embed"}}).items():
        unfrozen, frozen = lora.split(lora.trainable(name), base)
        assert set(host(unfrozen)) == expected
        assert set(host(frozen)) == set(host(base)) - expected


def test_at_step_0_the_model_is_the_base_to_the_bit(base):
    state = steps.init_state(CONFIG, ADAMW, one_device(), params=base, lora=PLUS)
    merged = host(lora.merge(PLUS, state.params, lora.split(PLUS, base)[1]))
    for path, x in host(base).items():
        np.testing.assert_array_equal(merged[path], x)


def test_fresh_adapters_are_kaiming_uniform_and_zero(base):
    state = steps.init_state(CONFIG, ADAMW, one_device(), params=base, lora=lora.LoRA(rank=64))
    flat = flatten_dict(state.params["adapters"])
    for path, x in flat.items():
        if path[-1] == "b":
            assert not np.asarray(x).any()
        else:
            bound = (N * H if "wo" in path else D) ** -0.5
            assert 0.95 * bound < np.abs(x).max() <= bound
            np.testing.assert_allclose(np.var(x), bound**2 / 3, rtol=0.1)
    assert len({np.asarray(x).tobytes()[:64] for p, x in flat.items() if p[-1] == "a"}) == 4


def test_merged_weights_equal_numpy(base):
    everything = lora.LoRA(rank=3, alpha=7.0, targets=lora.TARGETS)
    state = steps.init_state(CONFIG, ADAMW, one_device(), params=base, lora=everything)
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.params)
    merged = host(lora.merge(everything, tree, lora.split(everything, base)[1]))
    flat, weights = host(tree["adapters"]), host(base)
    shapes = {"wq": "lor,lrnh->lonh", "wo": "lnhr,lrd->lnhd"}
    for path in (p for p in weights if p.rpartition("/")[2] in lora.TARGETS):
        spec = shapes.get(path[-2:], "lor,lr...->lo...")
        a, b = (flat[f"{path}/{n}"].astype(np.float64) for n in "ab")
        expected = weights[path] + 7.0 / 3 * np.einsum(spec, a, b)
        np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_adapters_are_those_of_the_merged_weight(base):
    """dA = (alpha / r) dW B^T and dB = (alpha / r) A^T dW, with dW of the model without LoRA."""
    mesh = one_device()
    state = steps.init_state(CONFIG, ADAMW, mesh, params=base, lora=PLUS)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), state.params)
    frozen = lora.split(PLUS, base)[1]
    rows = batch(mesh)
    found = host(jax.jit(jax.grad(lambda p: loss(lora.merge(PLUS, p, frozen), rows)))(params))
    dense = host(jax.jit(jax.grad(loss))(lora.merge(PLUS, params, frozen), rows))
    adapters = host(params["adapters"])
    for name in ("wq", "wk", "wv", "wo"):
        path = f"layers/attention/{name}"
        a, b, dw = adapters[f"{path}/a"], adapters[f"{path}/b"], dense[path]
        a, b = a.reshape(L, -1, 3), b.reshape(L, 3, -1)
        dw = dw.reshape(L, a.shape[1], b.shape[2])
        expected = {"a": 2.0 * dw @ b.swapaxes(1, 2), "b": 2.0 * a.swapaxes(1, 2) @ dw}
        for n, value in expected.items():
            got = found[f"adapters/{path}/{n}"].reshape(value.shape)
            np.testing.assert_allclose(got, value, atol=2e-6, err_msg=f"{name} {n}")
    np.testing.assert_allclose(found["unfrozen/embed"], dense["embed"], atol=2e-6)


def test_rank_of_the_whole_matrix_can_represent_any_change(base):
    """With r = fan_in, A^-1 turns any target change into a B."""
    settings = lora.LoRA(rank=D, alpha=2.0, targets=("gate",))
    state = steps.init_state(CONFIG, ADAMW, one_device(), params=base, lora=settings)
    wanted = np.random.default_rng(0).normal(size=(L, D, F))
    a = np.asarray(state.params["adapters"]["layers"]["mlp"]["gate"]["a"], np.float64)
    b = np.linalg.solve(a, wanted - np.asarray(base["layers"]["mlp"]["gate"])) * D / 2.0
    tree = {"adapters": {"layers": {"mlp": {"gate": {"a": a, "b": b}}}}, "unfrozen": {}}
    merged = lora.merge(settings, tree, lora.split(settings, base)[1])
    np.testing.assert_allclose(merged["layers"]["mlp"]["gate"], wanted, atol=1e-3)


@pytest.mark.parametrize("name", lora.TRAINABLE[1:])
def test_counts_follow_the_closed_form(name):
    """Adapters have r (in + out) numbers per target and layer; Adam holds two moments of each."""
    for config in (CONFIG, llama.preset("llama2_7b"), llama.preset("smollm2_135m")):
        settings = lora.trainable(name)
        mesh = one_device()
        state = steps.abstract_state(config, ADAMW, mesh, settings)
        c = config
        q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        expected = 8 * c.n_layers * (2 * (c.d_model + q) + 2 * (c.d_model + kv))
        expected += (2 * c.n_layers + 1) * c.d_model if settings.norms else 0
        expected += c.vocab_size * c.d_model if settings.embed else 0
        assert lora.count(state.params) == expected
        moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape]
        assert sum(math.prod(x.shape) for x in moments) == 2 * expected


def test_llama_2_7b_has_the_published_share_of_norms():
    """LongLoRA: norms are 0.004 percent of a 7B; rank-8 adapters have 8,388,608 numbers."""
    params = steps.abstract_params(llama.preset("llama2_7b"), one_device())
    norms = lora.split(lora.trainable("lora_norm"), params)[0]
    assert round(100 * lora.count(norms) / lora.count(params), 3) == 0.004
    state = steps.abstract_state(
        llama.preset("llama2_7b"), ADAMW, one_device(), lora.trainable("lora")
    )
    assert lora.count(state.params) == 8_388_608


def test_a_mesh_and_accumulation_change_nothing_and_adapters_are_sharded(base):
    expected = host(trained(base, PLUS)[0].params)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    state, _ = trained(base, PLUS, mesh, accumulation=2)
    found = host(state.params)
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, atol=5e-5, err_msg=path)
    wq = state.params["adapters"]["layers"]["attention"]["wq"]
    assert wq["a"].sharding.spec == jax.sharding.PartitionSpec(None, ("fsdp", "sequence"), None)
    assert wq["b"].sharding.spec == jax.sharding.PartitionSpec(None, None, "tensor", None)


def test_the_step_takes_that_gradient(base):
    """The logged norm is the one of every trainable gradient, over two microbatches too."""
    mesh = one_device()
    frozen = lora.split(PLUS, base)[1]
    state = steps.init_state(CONFIG, ADAMW, mesh, params=base, lora=PLUS)
    grads = jax.jit(jax.grad(lambda p: loss(lora.merge(PLUS, p, frozen), batch(mesh))))(
        state.params
    )
    expected = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    step = steps.make_train_step(CONFIG, ADAMW, mesh, PLUS)
    _, logged = step(state, ROPE, batch(mesh), frozen)
    np.testing.assert_allclose(logged["grad_norm"], expected, rtol=1e-4)


def test_a_run_that_was_cut_off_ends_the_same_to_the_bit(base, tmp_path):
    class Batches:
        """Six batches; the state of the iterator is its place."""

        def __init__(self):
            self.at = 0

        def __next__(self):
            self.at += 1
            rows = batch(one_device(), seed=self.at)
            return {k: np.asarray(x[0]) for k, x in rows.items()}

        def get_state(self):
            return {"at": self.at}

        def set_state(self, state):
            self.at = state["at"]

    frozen = lora.split(PLUS, base)[1]
    step = steps.make_train_step(CONFIG, ADAMW, one_device(), PLUS)

    def run(directory, n):
        return loop.fit(
            steps.init_state(CONFIG, ADAMW, one_device(), params=base, lora=PLUS, seed=5),
            functools.partial(step, frozen=frozen),
            Batches(),
            rotary=ROPE,
            loop=loop.LoopConfig(n, checkpoint_every=2, tensorboard=False),
            mesh=one_device(),
            directory=directory,
        )

    expected = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 3)
    found = run(tmp_path / "cut", 6)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)
    abstract = steps.abstract_state(CONFIG, ADAMW, one_device(), PLUS).params
    kept = checkpoints.restore_params(tmp_path / "cut" / "checkpoints", abstract)
    for path, x in host(kept).items():
        np.testing.assert_array_equal(x, host(expected.params)[path])


def test_bfloat16_weights_keep_small_changes():
    weight = jnp.ones((1, 4, 4), jnp.bfloat16)
    settings = lora.LoRA(rank=1, alpha=1.0, targets=("gate",))
    tree = {"a": jnp.full((1, 4, 1), 1e-3), "b": jnp.ones((1, 1, 4))}
    merged = lora.merge(
        settings,
        {"adapters": {"mlp": {"gate": tree}}, "unfrozen": {}},
        {"mlp": {"gate": weight}},
    )
    np.testing.assert_allclose(merged["mlp"]["gate"], 1.001, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("wq", "wkk")}, "wkk.*'wk'"),
        ({"targets": ()}, "targets"),
        ({"targets": "wq"}, "tuple"),
        ({"rank": 0}, "rank.*0"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(lora.LoRA(), **changes)
    assert "\n" not in str(error.value)


def test_unknown_subset_and_missing_parameters_are_refused():
    with pytest.raises(ValueError, match=r"'lora_pluss'.*'lora_plus'"):
        lora.trainable("lora_pluss")
    with pytest.raises(ValueError, match="give params"):
        steps.init_state(CONFIG, ADAMW, one_device(), lora=PLUS)


def test_warm_up_may_begin_above_0_and_end_constant():
    """Position Interpolation: from 10 percent of the peak to all of it in 20 steps, constant."""
    config = optimizer.OptimizerConfig(2e-5, 1000, 20, initial_ratio=0.1, final_ratio=1.0)
    rate = optimizer.schedule(config)
    expected = {0: 2e-6, 10: 1.1e-5, 20: 2e-5, 500: 2e-5, 999: 2e-5}
    for at, value in expected.items():
        np.testing.assert_allclose(rate(at), value, rtol=1e-5)
    with pytest.raises(ValueError, match="initial_ratio"):
        dataclasses.replace(config, initial_ratio=1.5)

"""On eight fake devices: same numbers, really sharded, the expected collectives, and refusals."""

import re
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from longrope_jax import llama, rotary, sharding
from longrope_jax.training.loss import token_scores

# Every size is another number, so that shapes in the compiled program can be recognised.
B, T, V = 8, 24, 56
CONFIG = llama.LlamaConfig(V, 32, 2, 4, 2, 16, 80)
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
MESHES = {
    "data": {"data": 8},
    "context": {"fsdp": 4, "sequence": 2},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
}


def loss(params, tokens, rot):
    hidden, _ = llama.Llama(CONFIG).apply({"params": params}, tokens, rotary=rot)
    return token_scores(CONFIG, params, hidden, jnp.roll(tokens, -1, axis=1), chunk=12).nll.mean()


def shardings_of(config, mesh):
    boxed = jax.eval_shape(partial(llama.init_boxed, config), jax.random.key(0))
    return sharding.shardings(mesh, boxed)


def sharded_parameters(config, mesh):
    shardings = shardings_of(config, mesh)
    with jax.set_mesh(mesh):
        make = jax.jit(partial(llama.init_params, config), out_shardings=shardings)
        return make(jax.random.key(0)), shardings


def collectives(hlo):
    """(kind, shapes, groups of devices) of each collective in the compiled program."""
    found = []
    for line in hlo.splitlines():
        match = re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line)
        if match:
            found.append((match[2], match[1], device_groups(line)))
    return found


def device_groups(line):
    """The groups of devices that exchange, from HLO's list, its reshaped count or its mesh."""
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", match[1])]
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims, order = ([int(n) for n in (m or "").split(",") if n] for m in match.groups())
        count = np.arange(np.prod(dims)).reshape(dims)
        return count.transpose(order or None).reshape(shape).tolist()
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
        chosen = re.findall(r"'(\w+)'", match[2])
        axes = [*(a for a in sizes if a not in chosen), *chosen]
        count = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values()))
        width = np.prod([sizes[a] for a in chosen])
        return count.transpose([list(sizes).index(a) for a in axes]).reshape(-1, width).tolist()
    return None


TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype(np.int32)
ROT = rotary.make(rotary.RoPE(), head_dim=16, seq_len=T)


def compiled(sizes, devices=None, params=None):
    mesh = sharding.make_mesh(**sizes, devices=devices)
    if params is None:
        params, shardings = sharded_parameters(CONFIG, mesh)
    else:
        shardings = shardings_of(CONFIG, mesh)
        params = jax.device_put(params, shardings)
    tokens = sharding.shard_batch(mesh, TOKENS)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings))
        program = step.lower(params, tokens, ROT).compile()
        value, grads = program(params, tokens, ROT)
    hlo = program.as_text()
    return SimpleNamespace(
        params=params, value=value, grads=grads, hlo=hlo, collectives=collectives(hlo)
    )


@pytest.fixture(scope="module")
def one_device():
    assert jax.device_count() == 8
    return compiled({}, jax.devices()[:1])


@pytest.fixture(scope="module", params=MESHES)
def sharded(request, one_device):
    # Made where they lie on the mixed mesh, moved there on the others: cheaper to compile.
    params = None if request.param == "mixed" else jax.device_get(one_device.params)
    run = compiled(MESHES[request.param], params=params)
    return SimpleNamespace(name=request.param, **vars(run))


def shard_shape(x):
    shapes = {shard.data.shape for shard in x.addressable_shards}
    assert len(shapes) == 1 and len(x.addressable_shards) == 8
    return shapes.pop()


def parts(name):
    sizes = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1} | MESHES[name]
    parameters = sizes["fsdp"] * sizes["sequence"]
    return sizes["data"] * sizes["fsdp"], parameters, sizes["sequence"], sizes["tensor"]


# Numbers


def test_one_device_mesh_equals_no_mesh(one_device):
    value = jax.jit(loss)(jax.device_get(one_device.params), TOKENS, ROT)
    assert float(one_device.value) == pytest.approx(float(value), rel=1e-6)


def test_loss_and_gradients_equal_one_device(sharded, one_device):
    equal = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(equal, sharded.params, one_device.params)
    assert float(sharded.value) == pytest.approx(float(one_device.value), rel=1e-5)
    jax.tree.map(equal, sharded.grads, one_device.grads)


UNDIVIDED = {
    "more shards than key heads": ({"data": 2, "tensor": 4}, (4, 2), {}),
    "key heads split unevenly": ({"fsdp": 4, "tensor": 2}, (6, 3), {}),
    "one key head": ({"fsdp": 2, "tensor": 4}, (4, 1), {"tie_embeddings": True}),
    "biases and a norm over heads": (
        {"data": 2, "tensor": 4},
        (4, 2),
        {"attention_bias": True, "qk_norm_joint": True},
    ),
}


@pytest.mark.parametrize("case", UNDIVIDED)
def test_copied_key_heads_and_a_padded_vocabulary_equal_one_device(case, random_params):
    """Scores and gradients, where 53 tokens and the key heads do not divide over `tensor`."""
    sizes, (N, K), more = UNDIVIDED[case]
    config = llama.LlamaConfig(53, 32, 2, N, K, 16, 80, **more)
    params, tokens = random_params(config), TOKENS % 53
    found = []
    for mesh in (sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(**sizes)):
        shardings = shardings_of(config, mesh)

        def scores(params, tokens):
            hidden, _ = llama.Llama(config).apply({"params": params}, tokens, rotary=ROT)
            nll, correct = token_scores(config, params, hidden, jnp.roll(tokens, -1, 1), chunk=12)
            return nll.mean(), (nll, correct)

        with jax.set_mesh(mesh):
            run = jax.jit(jax.value_and_grad(scores, has_aux=True), out_shardings=(None, shardings))
            args = jax.device_put(params, shardings), sharding.shard_batch(mesh, tokens)
            (_, (nll, correct)), grads = run(*args)
            logits = llama.logits(config, args[0], tokens, ROT)
        np.testing.assert_array_equal(correct, logits.argmax(-1) == np.roll(tokens, -1, 1))
        found.append((nll, grads, logits))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *found)
    lies = found[1][1]["layers"]["attention"]["wk"]
    assert shard_shape(lies)[2] == K and found[1][1]["embed"].shape[0] == 53


# Where things lie


def test_parameters_and_gradients_are_sharded(sharded):
    _, cut, _, tensor = parts(sharded.name)
    D, F, N, K, H = 32 // cut, 80 // tensor, 4 // tensor, 2 // tensor, 16
    for tree in (sharded.params, sharded.grads):
        layers = tree["layers"]
        assert shard_shape(tree["embed"]) == (V // tensor, D)
        assert shard_shape(tree["unembed"]) == (D, V // tensor)
        assert shard_shape(tree["final_norm"]["scale"]) == (D,)
        assert shard_shape(layers["mlp_norm"]["scale"]) == (2, D)
        assert shard_shape(layers["mlp"]["gate"]) == (2, D, F)
        assert shard_shape(layers["mlp"]["down"]) == (2, F, D)
        assert shard_shape(layers["attention"]["wq"]) == (2, D, N, H)
        assert shard_shape(layers["attention"]["wk"]) == (2, D, K, H)
        assert shard_shape(layers["attention"]["wo"]) == (2, N, H, D)


def test_activations_are_sharded(sharded):
    """Shapes per device in the compiled program; none has the whole batch."""
    batch, _, sequence, tensor = parts(sharded.name)
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", sharded.hlo)}
    here, tokens = B // batch, T // sequence
    assert (here, tokens // tensor, 32) in shapes  # residual
    # XLA drops axes of size one here and there, so the rest is compared without them.
    bare = {tuple(n for n in shape if n > 1) for shape in shapes}

    def present(*shape):
        return tuple(n for n in shape if n > 1) in bare

    assert present(here, tokens, 80 // tensor)  # SwiGLU
    assert present(here, tokens, 4 // tensor, 16)  # queries
    assert present(here, 12, V // tensor)  # logits of a chunk
    assert not any(s[:2] == (B, T) for s in shapes)
    if sequence > 1:  # all keys, but not all queries
        assert present(here, T, 2, 16) and not present(here, T, 4, 16)
    if tensor > 1:
        assert not present(here, T, 80) and not present(here, 12, V)
        assert not present(here, T, 4, 16)


def test_hidden_states_keep_their_sharding(random_params):
    seen = []
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    params = random_params(CONFIG)  # not sharded by themselves

    @jax.jit
    def hidden(params, tokens):
        x, _ = llama.Llama(CONFIG).apply({"params": params}, tokens, rotary=ROT)
        jax.debug.inspect_array_sharding(x, callback=seen.append)
        return x

    with jax.set_mesh(mesh):
        out = hidden(params, sharding.shard_batch(mesh, TOKENS))
    assert shard_shape(out) == (2, T // 2, 32)
    assert seen[0].shard_shape((B, T, 32)) == (2, T // 2, 32)


# Collectives


def test_one_device_has_no_collectives(one_device):
    assert one_device.collectives == []


def moved(sharded, kind, *shape):
    """The groups of devices over which an array of this shape is exchanged, once per collective."""
    text = "f32[" + ",".join(map(str, shape)) + "]"
    return [groups for k, shapes, groups in sharded.collectives if k == kind and text in shapes]


def test_collectives_are_the_expected_ones(sharded):
    _, cut, sequence, _ = parts(sharded.name)
    kinds = {kind for kind, _, _ in sharded.collectives}
    assert "all-reduce" in kinds  # loss
    assert ("all-gather" in kinds) == (cut > 1)  # parameters
    assert ("reduce-scatter" in kinds) == (cut > 1)  # gradients
    assert ("collective-permute" in kinds) == (sequence > 1)  # queries in zigzag order
    if sequence == 1:  # block bounds of attention are the same everywhere: none travel
        assert not any(re.search(r"\b[su]\d+\[", shapes) for _, shapes, _ in sharded.collectives)


def test_gradients_are_scattered_over_fsdp_and_never_whole(sharded):
    _, cut, _, tensor = parts(sharded.name)
    if cut > 1:
        for shape in [(32 // cut, 80 // tensor), (80 // tensor, 32 // cut)]:  # of the MLP
            assert moved(sharded, "reduce-scatter", *shape)
        for shape in [(32, 80 // tensor), (80 // tensor, 32), (32, V // tensor), (V // tensor, 32)]:
            assert not moved(sharded, "all-reduce", *shape)


def test_output_table_is_gathered_once_per_pass(sharded):
    _, cut, _, tensor = parts(sharded.name)
    shape = 32, V // tensor
    # At most once forward and once backward.
    assert len(moved(sharded, "all-gather", *shape)) <= (2 if cut > 1 else 0)
    lines = re.findall(rf"^.*= f32\[{shape[0]},{shape[1]}\].* all-gather\(.*$", sharded.hlo, re.M)
    assert not any("while" in line for line in lines)  # in no loop over chunks


def test_tensor_parallelism_scatters_activations_over_pairs(sharded):
    """No all-reduce of activations: norms and the residual stream hold T / tensor tokens."""
    batch, _, sequence, tensor = parts(sharded.name)
    whole, part = (B // batch, T // sequence, 32), (B // batch, T // sequence // tensor, 32)
    assert not moved(sharded, "all-reduce", *whole) + moved(sharded, "all-reduce", *part)
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7]]
    if tensor > 1:
        for kind, shape in (("reduce-scatter", part), ("all-gather", whole)):
            assert set(map(str, moved(sharded, kind, *shape))) == {str(pairs)}


# Refusals


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 4, "sequence": 3}, "does not divide 8 devices"),
        ({"data": 3}, "does not divide 8 devices"),
        ({"data": -1, "fsdp": 3}, "does not divide 8 devices"),
        ({"data": 4}, "does not divide 8 devices"),
        ({"data": 16}, "does not divide 8 devices"),
        ({"data": -1, "fsdp": -1}, "does not divide 8 devices"),
        ({"data": 0, "fsdp": 8}, "data must have a positive size or -1, got 0"),
        ({"fsdp": -2}, "fsdp must have a positive size or -1, got -2"),
    ],
)
def test_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes)


def test_minus_one_takes_what_is_left():
    assert dict(sharding.make_mesh(data=-1, tensor=2).shape) == {
        "data": 4,
        "fsdp": 1,
        "sequence": 1,
        "tensor": 2,
    }


def test_query_heads_that_do_not_divide_are_refused():
    config = llama.LlamaConfig(V, 32, 2, 3, 3, 16, 80)
    mesh = sharding.make_mesh(data=4, tensor=2)
    with pytest.raises(ValueError, match=r"axis of size 3 .* does not divide by 2"):
        sharded_parameters(config, mesh)
    params = jax.eval_shape(partial(llama.init_params, config), jax.random.key(0))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"axis of size 3 .*does not divide"):
        jax.eval_shape(partial(llama.logits, config), params, TOKENS, ROT)


def test_misspelt_logical_axis_is_refused():
    x = jnp.zeros((8, 4))
    with pytest.raises(ValueError, match="unknown logical axis 'bach'; did you mean 'batch'"):
        sharding.constrain(x, "bach", None)
    boxed = nn.LogicallyPartitioned(x, ("embedd", None))
    with pytest.raises(ValueError, match="did you mean 'embed'"):
        sharding.shardings(sharding.make_mesh(data=8), {"w": boxed})


def test_wrong_number_of_axes_is_refused():
    mesh = sharding.make_mesh(data=8)
    with pytest.raises(ValueError, match="1 logical axes for an array of shape"):
        sharding.shardings(mesh, nn.LogicallyPartitioned(jnp.zeros((8, 4)), ("embed",)))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="3 logical axes for an array"):
        sharding.constrain(jnp.zeros((8, 4)), "batch", None, None)


def test_batch_that_does_not_divide_is_refused():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    with pytest.raises(ValueError, match="batch of 12 does not divide over 8"):
        sharding.shard_batch(mesh, {"tokens": np.zeros((12, 4), np.int32)})
    params = jax.eval_shape(partial(llama.init_params, CONFIG), jax.random.key(0))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"axis of size 6 .* not divide by 8"):
        jax.eval_shape(partial(llama.logits, CONFIG), params, TOKENS[:6], ROT)


def test_batch_lies_over_data_and_fsdp():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    x = sharding.shard_batch(mesh, {"x": np.arange(24).reshape(8, 3)})["x"]
    assert x.sharding.spec == P(("data", "fsdp")) and shard_shape(x) == (2, 3)
    np.testing.assert_array_equal(x, np.arange(24).reshape(8, 3))


def test_what_has_no_box_is_replicated():
    mesh = sharding.make_mesh(data=8)
    assert sharding.shardings(mesh, {"step": jnp.zeros(())})["step"].spec == P()


@pytest.mark.parametrize(
    "shape, processes, index, share",
    [
        ((2, 2, 1, 2), [0, 0, 0, 0, 1, 1, 1, 1], 1, (1, 2)),  # each host its own rows
        ((1, 1, 8, 1), [0, 0, 0, 0, 1, 1, 1, 1], 1, (0, 1)),  # both along the sequence: the same
        ((2, 1, 4, 1), [0, 0, 1, 1, 2, 2, 3, 3], 3, (1, 2)),  # two hosts share a row, twice
        ((2, 1, 4, 1), [0, 0, 1, 1, 2, 2, 3, 3], 0, (0, 2)),
        ((8, 1, 1, 1), [0, 1, 0, 1, 0, 1, 0, 1], 1, (1, 2)),
        ((4, 1, 2, 1), [0, 1, 1, 1, 1, 1, 1, 1], 1, None),
        ((4, 1, 2, 1), [0, 0, 0, 1, 1, 1, 1, 0], 1, None),
    ],
)
def test_hosts_share_of_the_batch(shape, processes, index, share, monkeypatch):
    devices = [SimpleNamespace(process_index=p) for p in processes]
    sizes = dict(zip(sharding.AXES, shape, strict=True))
    mesh = SimpleNamespace(shape=sizes, devices=np.array(devices).reshape(shape))
    monkeypatch.setattr(jax, "process_index", lambda: index)
    if share is None:
        with pytest.raises(ValueError, match="hosts hold overlapping rows"):
            sharding.batch_share(mesh)
    else:
        assert sharding.batch_share(mesh) == share


def test_arrays_on_a_mesh_that_is_not_set_are_refused():
    """Without it no constraint would act and nothing would tell."""
    tokens = sharding.shard_batch(sharding.make_mesh(data=8), TOKENS)
    with pytest.raises(ValueError, match="lies on a mesh of 8 devices, but no mesh is set"):
        jax.jit(lambda x: sharding.constrain(x, "batch", "sequence"))(tokens)
    run = sharding.per_device(lambda x: x, (("batch", None),), ("batch", None))
    with pytest.raises(ValueError, match="call it under jax"):
        jax.eval_shape(run, tokens)


def test_mesh_without_our_axes_is_refused():
    mesh = jax.make_mesh((8,), ("dta",), (jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="unknown mesh axis 'data'; did you"):
        sharding.constrain(jnp.zeros((8, 4)), "batch", None)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="see make_mesh"):
        sharding.per_device(lambda x: x, (("batch",),), ("batch",))(jnp.zeros(8))


def test_misspelt_rule_is_refused(monkeypatch):
    monkeypatch.setitem(sharding.RULES, "mlp", "tensr")
    with pytest.raises(ValueError, match="unknown mesh axis 'tensr'; did you mean 'tensor'"):
        shardings_of(CONFIG, sharding.make_mesh(data=8))


def test_tokens_that_do_not_divide_over_tensor_are_refused():
    params = jax.eval_shape(partial(llama.init_params, CONFIG), jax.random.key(0))
    mesh = sharding.make_mesh(data=4, tensor=2)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"axis of size 23 .* by 2 .*tensor"):
        jax.eval_shape(partial(llama.logits, CONFIG), params, TOKENS[:, :23], ROT)

"""A method per layer: each layer computes what its own method computes, in one program."""

import dataclasses

import jax
import numpy as np
import pytest
from checkpoints import CONFIG, numbers

from longrope_jax import generate, llama, rotary
from longrope_jax.evaluation.attention_statistics import query_key_moments

ROPE, NOPE = rotary.RoPE(100.0), rotary.NoPE()
YARN = rotary.YaRN(factor=4, original_length=8, base=100.0)
MIXED = rotary.ByLayer((0, 1, 2), (ROPE, YARN, NOPE))
DEEP = dataclasses.replace(CONFIG, n_layers=4)
TOKENS = np.random.default_rng(5).integers(0, 40, (2, 20)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jax.numpy.asarray, numbers(DEEP))


def by_hand(params, spec, tokens):
    """Hidden states layer by layer, each a model of one layer under its own plain method."""
    x = jax.numpy.take(params["embed"], tokens, axis=0)
    for at in range(DEEP.n_layers):
        method = spec.methods[spec.pattern[at % len(spec.pattern)]]
        rot = rotary.make(method, head_dim=DEEP.head_dim, seq_len=tokens.shape[1])
        phases = rotary.phases(rot, np.arange(tokens.shape[1]))
        layer = jax.tree.map(lambda leaf, at=at: leaf[at], params["layers"])
        block = llama.Block(DEEP)
        (x, _), _ = block.apply({"params": layer}, (x, None), phases, None, 0, None)
    final = llama.RMSNorm(DEEP).apply({"params": params["final_norm"]}, x)
    return llama.unembed(DEEP, params, final)


def test_every_layer_has_its_own_method_and_the_pattern_repeats(params):
    found = llama.logits(DEEP, params, TOKENS, MIXED)
    np.testing.assert_allclose(found, by_hand(params, MIXED, TOKENS), atol=1e-5)
    separate = llama.unstack_layers(DEEP, params)
    np.testing.assert_allclose(llama.logits(DEEP, separate, TOKENS, MIXED), found, atol=1e-5)
    for other in (ROPE, YARN, rotary.ByLayer((0, 0, 1), (ROPE, NOPE))):
        assert np.abs(llama.logits(DEEP, params, TOKENS, other) - found).max() > 1e-3


def test_one_program_serves_all_patterns_and_methods_of_a_shape(params, compilations):
    run = jax.jit(lambda rot: llama.Llama(DEEP).apply({"params": params}, TOKENS, rotary=rot)[0])
    methods = (ROPE, rotary.RoPE(5e5), NOPE, YARN, rotary.XPos())
    specs = [rotary.ByLayer((0, 1), (a, b)) for a in methods for b in methods if a != b]
    for spec in specs:
        run(rotary.make(spec, head_dim=DEEP.head_dim, seq_len=20))
    assert sum("<lambda>" in name for name in compilations) == 1
    stacked = [rotary.make(spec, head_dim=DEEP.head_dim, seq_len=20) for spec in specs[:3]]
    found = jax.vmap(run)(rotary.stack_rotaries(stacked))
    for one, rot in zip(found, stacked, strict=True):
        np.testing.assert_allclose(one, run(rot), atol=1e-5)


@pytest.mark.parametrize("length", ["final", "current"])
def test_generation_equals_the_whole_forward(params, length):
    """With a method that depends on the length in some layers, row by row."""
    spec = rotary.ByLayer(
        (0, 1), (ROPE, rotary.DynamicNTK(factor=2.0, original_length=8, base=100.0))
    )
    prompts, new = [TOKENS[0, :5], TOKENS[1, :9]], 6
    found = generate.generate(DEEP, params, spec, prompts, new, rotary_length=length).tokens
    for prompt, got in zip(prompts, found, strict=True):
        row = prompt.tolist()
        for _ in range(new):
            size = len(prompt) + new if length == "final" else len(row)
            rot = rotary.make(spec, head_dim=DEEP.head_dim, seq_len=max(size, len(row)))
            row.append(int(llama.logits(DEEP, params, np.array([row]), rot)[0, -1].argmax()))
        assert row[len(prompt) :] == got.tolist()


def test_statistics_see_each_layer_under_its_own_method(params):
    """The second layer's moments follow from the first layer's method alone."""
    found = query_key_moments(DEEP, params, MIXED, TOKENS)
    np.testing.assert_allclose(
        found[1], query_key_moments(DEEP, params, ROPE, TOKENS)[1], atol=1e-5
    )
    assert np.abs(found[2] - query_key_moments(DEEP, params, ROPE, TOKENS)[2]).max() > 1e-4


def test_it_is_written_and_read_as_text():
    text = rotary.notation(MIXED)
    assert rotary.parse(text) == MIXED
    short = "by_layer:pattern=(0,0,1),methods=((rope:base=100.0),(nope))"
    assert rotary.parse(short) == rotary.ByLayer((0, 0, 1), (ROPE, NOPE))
    one = rotary.parse("by_layer:pattern=(0,),methods=((rope:base=100.0))")
    assert one == rotary.ByLayer((0,), (ROPE,))


def test_hugging_face_has_it_by_layer_type():
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    for spec in (rotary.ByLayer((0, 0, 1), (ROPE, YARN)), rotary.ByLayer((0, 0, 1), (ROPE, NOPE))):
        parameters = rotary.to_hf(spec, layer_types=types)
        config = {"rope_parameters": parameters, "layer_types": types, "num_hidden_layers": 6}
        assert rotary.from_hf(config) == spec
    with pytest.raises(ValueError, match="needs layer_types"):
        rotary.to_hf(MIXED)
    with pytest.raises(ValueError, match="one method for all layers of type 'sliding_attention'"):
        rotary.to_hf(MIXED, layer_types=types)
    # Where all layer types say the same, it is one method.
    same = {name: {"rope_theta": 100.0} for name in types}
    assert rotary.from_hf({"rope_parameters": same, "layer_types": types}) == ROPE


def test_explain_shows_every_method_and_its_layers():
    text = rotary.explain(rotary.ByLayer((0, 0, 1), (YARN, NOPE)), head_dim=8)
    for part in ("layers of methods[0]: 0, 1 of every 3", "layers of methods[1]: 2 of every 3"):
        assert part in text
    assert rotary.explain(YARN, head_dim=8) in text and rotary.explain(NOPE, head_dim=8) in text


def test_a_text_for_a_checkpoint_leaves_layers_without_rotation_as_they_are():
    own = rotary.ByLayer((0, 0, 1), (rotary.RoPE(5e6), NOPE))
    found, filled = rotary.parse_for_checkpoint("yarn:factor=4", own, 4096)
    assert found == rotary.ByLayer((0, 0, 1), (rotary.YaRN(4, 4096, 5e6), NOPE))
    assert filled == {"base": 5e6, "original_length": 4096}
    gemma = rotary.ByLayer((0, 0, 1), (rotary.RoPE(1e4), rotary.RoPE(1e6)))
    with pytest.raises(ValueError, match="does not say which layers are meant: change"):
        rotary.parse_for_checkpoint("yarn:factor=4", gemma, 4096)
    text = "by_layer:pattern=(0,0,1),methods=((rope:base=1e4),(yarn:factor=4,original_length=9{}))"
    with pytest.raises(ValueError, match="differ by layer, so write base="):
        rotary.parse_for_checkpoint(text.format(""), gemma, 4096)
    found, _ = rotary.parse_for_checkpoint(text.format(",base=1e6"), gemma, 4096)
    assert found.methods[1] == rotary.YaRN(4, 9, 1e6)


@pytest.mark.parametrize(
    ("pattern", "methods", "message"),
    [
        ((0, 2), (ROPE, NOPE), r"indices 0\.\.1 of methods"),
        ((0, 0), (ROPE, NOPE), r"no layer of pattern=\(0, 0\) has methods\[1\]"),
        ((), (ROPE,), "pattern of by_layer must be a tuple"),
        ((0,), (MIXED,), "got another by_layer"),
        ((0,), ("rope",), "methods must be a method, got 'rope'"),
    ],
)
def test_what_it_cannot_mean_is_refused(pattern, methods, message):
    with pytest.raises(ValueError, match=message):
        rotary.ByLayer(pattern, methods)


def test_uses_that_need_one_set_of_frequencies_say_so(params):
    with pytest.raises(ValueError, match=r"differs by layer .*: take one of its methods"):
        MIXED.frequencies(head_dim=8, seq_len=8)
    with pytest.raises(ValueError, match="only rotaries of one structure"):
        rotary.make(
            rotary.ByLayer((0, 1), (ROPE, rotary.ReRoPE(window=4, inner=ROPE))),
            head_dim=8,
            seq_len=8,
        )
    with pytest.raises(ValueError, match="pattern of by_layer has 5 entries, but the model has 4"):
        llama.logits(DEEP, params, TOKENS, rotary.ByLayer((0, 0, 0, 0, 1), (ROPE, NOPE)))


def test_a_length_beyond_any_of_its_methods_is_refused():
    spec = rotary.ByLayer((0, 1), (ROPE, rotary.DynamicNTK(factor=2.0, original_length=8)))
    rot = rotary.make(spec, head_dim=8, seq_len=16)
    rotary.check_length(rot, 16)
    with pytest.raises(ValueError, match="made for 16 tokens"):
        rotary.phases(rot, np.arange(17))

"""Configs as people ship them: what a family implies, where its keys lie, which of two values wins.

Truth is transformers live, which builds the same config and computes the frequencies.
"""

import warnings

import numpy as np
import pytest

from longrope_jax import rotary

DEFAULTS = (
    "llama mistral qwen2 qwen3 mixtral smollm3 cohere phi glm nemotron gpt_neox stablelm "
    "persimmon helium phi3 olmo2 gemma2 ernie4_5 lfm2"
)
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
SIZES |= {"num_hidden_layers": 4, "vocab_size": 40, "intermediate_size": 48, "head_dim": 16}


@pytest.fixture(scope="module")
def transformers():
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    pytest.importorskip("torch", reason=why)
    module = pytest.importorskip("transformers", reason=why)
    module.logging.set_verbosity_error()
    return module


def their_frequencies(transformers, config, layer_type=None):
    """Frequencies [pairs] by transformers' own rules, from its own reading of the config."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = config["model_type"]
    rest = {key: value for key, value in config.items() if key != "model_type"}
    read = transformers.AutoConfig.for_model(kind, **rest)
    parameters = read.rope_parameters if layer_type is None else read.rope_parameters[layer_type]
    if parameters["rope_type"] == "default":
        pairs = int(16 * parameters.get("partial_rotary_factor", 1.0)) // 2
        return float(parameters["rope_theta"]) ** (-np.arange(pairs) / pairs)
    options = {} if layer_type is None else {"layer_type": layer_type}
    function = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    return function(read, "cpu", **options)[0].double().numpy()


def ours(config, layer_type=None):
    spec = rotary.from_hf(config, layer_type=layer_type)
    return spec.frequencies(head_dim=16, seq_len=64).inv_freq


@pytest.mark.parametrize("kind", DEFAULTS.split())
def test_a_family_without_rotary_keys_has_the_defaults_of_transformers(transformers, kind):
    config = SIZES | {"model_type": kind}
    layer = "rope" if kind == "smollm3" else None
    expected = their_frequencies(transformers, config)
    np.testing.assert_allclose(ours(config, layer), expected, rtol=1e-6)


LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
MIXED = {
    "Gemma 3": {"model_type": "gemma3_text", "rope_scaling": LINEAR},
    "Gemma 3, bases given": {
        "model_type": "gemma3_text",
        "rope_scaling": LINEAR,
        "rope_theta": 5e5,
        "rope_local_base_freq": 5e3,
    },
    "OLMo 3": {"model_type": "olmo3", "rope_scaling": YARN, "rope_theta": 5e5},
    "OLMo 3, without a base": {"model_type": "olmo3"},
}


@pytest.mark.parametrize("case", MIXED)
def test_a_flat_config_whose_method_differs_by_layer_is_read_by_layer(transformers, case):
    config = SIZES | MIXED[case]
    for layer in ("full_attention", "sliding_attention"):
        expected = their_frequencies(transformers, config, layer)
        np.testing.assert_allclose(ours(config, layer), expected, rtol=1e-6)
    both = [rotary.from_hf(config, layer_type=f"{x}_attention") for x in ("sliding", "full")]
    four = both[:1] * 3 + both[1:]  # OLMo 3's period is four layers, Gemma 3's six
    whole = rotary.from_hf(config)
    if "Gemma" in case or both[0] == both[1]:
        assert whole == both[0]
    else:
        assert [whole.methods[at] for at in whole.pattern] == four
    used = {key.name for key in rotary.audit(config) if key.status == "used"}
    assert used >= {name for name in config if name.startswith("rope_") and name != "rope_scaling"}
    with pytest.raises(ValueError, match="did you mean 'full_attention'"):
        rotary.from_hf(config, layer_type="full_atention")
    for layer, status in (("full_attention", "used"), ("sliding_attention", "ignored")):
        found = rotary.audit(config, layer_type=layer)
        assert {key.name.partition(".")[0] for key in found} == set(config)
        block = {key.status for key in found if key.name.startswith("rope_scaling")}
        assert block <= {status}


def test_layers_without_rotation_are_told_apart():
    """transformers' modeling code rotates where no_rope_layers is 1 (smollm3, llama4)."""
    for kind in ("smollm3", "llama4_text"):
        config = {"model_type": kind, "rope_theta": 5e6, "no_rope_layers": [1, 1, 1, 0]}
        assert rotary.from_hf(config, layer_type="rope") == rotary.RoPE(5e6)
        assert rotary.from_hf(config, layer_type="no_rope") == rotary.NoPE()
        assert rotary.from_hf(config | {"no_rope_layers": [1, 1]}) == rotary.RoPE(5e6)
        assert rotary.from_hf(config | {"no_rope_layers": [0, 0]}) == rotary.NoPE()
    config = {"model_type": "cohere2", "rope_theta": 5e4}
    assert rotary.from_hf(config, layer_type="full_attention") == rotary.NoPE()
    assert rotary.from_hf(config, layer_type="sliding_attention") == rotary.RoPE(5e4)


def test_a_layer_type_that_the_config_does_not_have_is_an_error():
    config = {"model_type": "llama", "rope_theta": 5e5}
    with pytest.raises(ValueError, match="all layers have one method, leave it out"):
        rotary.from_hf(config, layer_type="full_attention")
    config["layer_types"] = ["full_attention"]
    assert rotary.from_hf(config, layer_type="full_attention") == rotary.RoPE(5e5)
    with pytest.raises(ValueError, match="did you mean 'full_attention'"):
        rotary.from_hf(config, layer_type="ful_attention")


@pytest.mark.parametrize("part", ["text_config", "llm_config", "language_config", "attn_config"])
def test_rotary_keys_are_found_in_the_part_about_text(part):
    inner = {"rope_theta": 5e5, "rope_scaling": LINEAR}
    config = {"model_type": "something_vl", part: inner, "max_position_embeddings": 4096}
    want = rotary.PositionInterpolation(8.0, 5e5)
    assert rotary.from_hf(config) == want
    thinker = {"model_type": "omni", "thinker_config": {part: inner}}
    assert rotary.from_hf(thinker) == want
    statuses = {key.name: key.status for key in rotary.audit(config)}
    assert statuses[f"{part}.rope_theta"] == "used"
    assert statuses[f"{part}.rope_scaling.factor"] == "used"
    names = {key.name for key in rotary.audit(thinker)}
    assert f"thinker_config.{part}.rope_theta" in names


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "alibi"),
        ("position_embedding_type", "nope"),
        ("use_dynamic_ntk", True),
        ("use_logn_attn", True),
        ("use_alibi", True),
    ],
)
def test_a_key_that_asks_for_other_positions_is_an_error_that_names_it(key, value):
    config = {"rope_theta": 1e4, key: value}
    for function in (rotary.from_hf, rotary.audit):
        with pytest.raises(ValueError, match=f"{key}={value!r} asks for more"):
            function(config)
    quiet = "rope" if key == "position_embedding_type" else False
    assert rotary.from_hf(config | {key: quiet}) == rotary.RoPE()
    rules = {found.name: found.rule for found in rotary.audit(config | {key: quiet})}
    assert rules[key] != "not about positions"


def test_a_base_that_is_not_known_is_asked_for():
    with pytest.raises(ValueError, match=r"no rope_theta, and .*'mine'"):
        rotary.from_hf({"model_type": "mine", "hidden_size": 64})
    assert rotary.from_hf({"model_type": "mine", "rope_theta": 7e4}) == rotary.RoPE(7e4)


@pytest.mark.parametrize("factor, ends", [(32.0, 3.6140467735726305e-05),
                                          (64.0, 1.8070233867863153e-05)])  # fmt: skip
def test_kimi_k2_has_both_betas_at_1(factor, ends):
    """Pairs 19 and 20 of its heads: the last that is kept, and the first that is interpolated."""
    block = {"type": "yarn", "factor": factor, "original_max_position_embeddings": 4096}
    block |= {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    spec = rotary.from_hf({"rope_theta": 50_000.0, "rope_scaling": block})
    found = spec.frequencies(head_dim=64, seq_len=4096).inv_freq
    np.testing.assert_allclose(found[19:21], [1.6217599081159522e-03, ends], rtol=1e-12)
    with pytest.raises(ValueError, match="beta_slow must be below beta_fast"):
        rotary.YaRN(8.0, 64, beta_fast=1.0, beta_slow=1.0, ramp="rotations")


def test_su_is_another_name_of_longrope_and_no_contradiction():
    block = {"rope_type": "longrope", "type": "su", "short_factor": [1.0] * 8, "factor": 2.0}
    block |= {"long_factor": [2.0] * 8, "original_max_position_embeddings": 64}
    assert rotary.from_hf({"rope_scaling": block}).long_factor == (2.0,) * 8


def test_keys_beside_the_layer_types_are_shared_by_all(transformers):
    layers = {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}
    config = SIZES | {"model_type": "olmo3", "rope_parameters": layers | {"rope_theta": 7e4}}
    found = rotary.from_hf(config, layer_type="full_attention")
    assert found == rotary.YaRN(8.0, 64, 7e4)
    assert rotary.from_hf(config, layer_type="sliding_attention") == rotary.RoPE(7e4)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("block", [LLAMA3, {"rope_type": "yarn", "factor": 8.0}, SHORT])
def test_a_missing_original_length_is_max_position_embeddings_and_said(transformers, block):
    config = {"model_type": "llama", "rope_theta": 1e4, "max_position_embeddings": 128} | SIZES
    config["rope_scaling"] = dict(block)
    with pytest.warns(UserWarning, match="is taken to be max_position_embeddings=128"):
        spec = rotary.from_hf(config)
    assert spec.original_length == 128
    expected = their_frequencies(transformers, config)
    found = spec.frequencies(head_dim=16, seq_len=64)
    np.testing.assert_allclose(found.inv_freq, expected, rtol=1e-6)


def test_of_two_values_the_one_that_transformers_takes_wins_aloud(transformers):
    stale = SIZES | {"model_type": "llama", "rope_theta": 1e4}
    stale["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    with pytest.warns(UserWarning, match="rope_theta=500000 of the block won over 10000 outside"):
        found = ours(stale)
    np.testing.assert_allclose(found, their_frequencies(transformers, stale), rtol=1e-6)
    both = SIZES | {"model_type": "llama", "rope_scaling": LINEAR | {"rope_theta": 1e4}}
    both["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    with pytest.warns(UserWarning, match="rope_scaling won over rope_parameters"):
        found = ours(both)
    np.testing.assert_allclose(found, their_frequencies(transformers, both), rtol=1e-6)


def test_longrope_that_was_shortened_has_amplitude_1(transformers):
    """max_position_embeddings below the original length: nobody wrote a factor below 1."""
    block = SHORT | {"original_max_position_embeddings": 128}
    config = {"model_type": "llama", "max_position_embeddings": 64, "rope_scaling": block}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = rotary.from_hf(config)
    assert spec.frequencies(head_dim=16, seq_len=64).amplitude == 1

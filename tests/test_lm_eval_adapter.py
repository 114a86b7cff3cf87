"""The adapter of lm-evaluation-harness: request by request what its Hugging Face model says."""

import json
import types

import jax
import numpy as np
import pytest
from checkpoints import tokenizer_json, write

from longrope_jax import lm_eval_adapter as adapter

CHAT = (
    "{% for m in messages %}<eos>{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<eos>assistant{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path, _ = write(tmp_path_factory.mktemp("lm_eval"), "hf")
    (path / "tokenizer.json").write_text(tokenizer_json())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT}))
    return path


def test_windows_score_each_id_once_with_all_the_context_there_is():
    windows = list(adapter._windows(np.arange(10, 20), 1, 4))
    assert [x.continuation.tolist() for x in windows] == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
        [18, 19],
    ]
    assert [x.context.tolist() for x in windows] == [[1], [13], [15, 16, 17]]


def test_options_that_change_the_text_are_honoured_or_refused():
    read = adapter._generation
    assert read({"until": "\n"}, 9) == (["\n"], 9, 0.0, 1.0)
    assert read({"until": ["a", ""], "max_tokens": 3, "top_k": 5}, 9) == (["a"], 3, 0.0, 1.0)
    assert read({"do_sample": False, "temperature": 0.7}, 9)[2] == 0
    assert read({"temperature": 0.7, "top_p": 0.9}, 9)[2:] == (0.7, 0.9)
    with pytest.raises(ValueError, match="num_beams"):
        read({"num_beams": 4}, 9)
    with pytest.raises(ValueError, match="top_k"):
        read({"do_sample": True, "temperature": 1.0, "top_k": 5}, 9)


def test_without_the_harness_the_error_names_the_extra(monkeypatch, checkpoint):
    monkeypatch.setattr(adapter, "LM", object)
    with pytest.raises(ValueError, match=r"longrope_jax\[lm_eval\]"):
        adapter.LongropeLM(str(checkpoint))


# With lm-evaluation-harness


@pytest.fixture(scope="module")
def harness():
    why = "LOUD SKIP: pip install 'longrope_jax[lm_eval]' to compare with lm-evaluation-harness"
    return pytest.importorskip("lm_eval", reason=why)


@pytest.fixture(scope="module")
def ours(harness, checkpoint):
    return adapter.LongropeLM(str(checkpoint), max_length=24, max_gen_toks=8, batch_size=2)


QUESTIONS = [
    {"question": "where is the cat", "choices": ["on the mat", "in the hat", "there"], "answer": 0},
    {"question": "what is 2 and 2", "choices": ["4", "the number 5"], "answer": 0},
    {
        "question": "a question that is too long for 24 tokens",
        "choices": ["yes", "no"],
        "answer": 1,
    },
]
HEAD = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
TASKS = {
    "local_choice": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
    "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\n",
    "local_text": "output_type: generate_until\ndoc_to_text: '{{question}} '\n"
    "doc_to_target: '{{choices[0]}}'\ngeneration_kwargs:\n  until: ['th']\n  max_gen_toks: 12\n"
    "metric_list:\n  - metric: exact_match\n",
    "local_rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
    "doc_to_target: '{{question}} {{question}}'\nmetric_list:\n  - metric: word_perplexity\n",
}


def responses(harness, model, folder):
    """What the model answered to each request of each task, by task and document."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = harness.simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=tasks, log_samples=True, bootstrap_iters=0
    )
    rows = [(name, s["doc_id"], s["resps"]) for name in TASKS for s in found["samples"][name]]
    return sorted(rows, key=lambda row: row[:2])


def numbers_in(answers):
    """Every number of nested answers, in order."""
    if isinstance(answers, list | tuple):
        return [x for one in answers for x in numbers_in(one)]
    return [] if isinstance(answers, str) else [float(answers)]


def test_answers_are_those_of_its_hugging_face_model(harness, ours, checkpoint, tmp_path):
    why = "LOUD SKIP: pip install transformers and a CPU torch to compare with transformers live"
    pytest.importorskip("torch", reason=why)
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason=why)
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, body in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{HEAD.format(data=data)}{body}")
    peer = huggingface.HFLM(
        str(checkpoint), device="cpu", dtype="float32", max_length=24, batch_size=2
    )
    theirs = responses(harness, peer, tmp_path)
    mine = responses(harness, ours, tmp_path)
    assert [row[:2] for row in mine] == [row[:2] for row in theirs] and len(mine) == 9
    for (name, _, one), (_, _, other) in zip(mine, theirs, strict=True):
        if name == "local_text":
            assert one == other
        np.testing.assert_allclose(numbers_in(one), numbers_in(other), atol=1e-4)


def test_a_conversation_is_written_as_transformers_writes_it(ours, checkpoint):
    transformers = pytest.importorskip("transformers", reason="LOUD SKIP: pip install transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(checkpoint))
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "it is"}]
    for turns, prompt in ((talk[:1], True), (talk, False)):
        theirs = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=prompt, continue_final_message=not prompt
        )
        assert ours.apply_chat_template(turns, prompt) == theirs
        assert ours._ids(theirs).tolist() == tokenizer.encode(theirs, add_special_tokens=False)


def test_importing_the_module_is_enough_for_the_harness(harness):
    from lm_eval.api.registry import get_model  # pyright: ignore[reportMissingImports]

    assert get_model("longrope_jax") is adapter.LongropeLM


def request(*args):
    return types.SimpleNamespace(args=args)


def test_a_mesh_scores_and_generates_as_one_device(harness, ours, checkpoint):
    spread = adapter.LongropeLM(str(checkpoint), max_length=24, data=2, fsdp=2, tensor=2)
    assert len(jax.tree.leaves(spread.model.params)[0].sharding.device_set) == 8
    asked = [request(q["question"], f" {choice}") for q in QUESTIONS for choice in q["choices"]]
    for one, other in zip(spread.loglikelihood(asked), ours.loglikelihood(asked), strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4) and one[1] == other[1]
    texts = [request(q["question"] * 2) for q in QUESTIONS]
    np.testing.assert_allclose(
        spread.loglikelihood_rolling(texts), ours.loglikelihood_rolling(texts), atol=1e-4
    )
    asked = [request(f"the cat{more}", {"max_gen_toks": 4}) for more in ("", " is", " on it")]
    assert spread.generate_until(asked) == ours.generate_until(asked)


def test_prompts_of_many_lengths_need_few_programs(harness, ours, compilations):
    words = ["the cat", "it is on", "the mat that", "is there a cat", "a cat or that"]

    def asked(texts):
        return [request(text, {"until": [], "max_gen_toks": 4}) for text in texts]

    ours.generate_until(asked(words))
    compilations.clear()
    ours.generate_until(asked([f"{word} it" for word in words] + [f"{w} a" for w in words]))
    assert not compilations, sorted(set(compilations))

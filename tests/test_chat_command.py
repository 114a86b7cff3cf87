"""`longrope chat`: turn by turn, streamed, honest about where a conversation gets too long."""

import io
import json

import numpy as np
import pytest
from checkpoints import tokenizer_json, write

from longrope_jax import cli, model
from longrope_jax.data import chat

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, _ = write(tmp_path_factory.mktemp("chat"), "hf", context_length=64)
    (path / "tokenizer.json").write_text(tokenizer_json())
    named = {"eos_token": "<eos>", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return path


@pytest.fixture
def say(folder, monkeypatch, capsys):
    """Runs the command on lines of stdin: exit status, stdout, stderr."""

    def run(lines, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        status = cli.main(["chat", str(folder), *options])
        return (status, *capsys.readouterr())

    return run


def answers(folder, turns, system=None, rotary=None):
    """What a conversation should say, by whole generations."""
    loaded, talk, found = model.load(folder), [], []
    if system:
        talk.append({"role": "system", "content": system})
    for turn in turns:
        talk.append({"role": "user", "content": turn})
        ids = chat.prompt(loaded.tokenizer, loaded.special_tokens, talk)
        new = loaded.generate(ids, max_new_tokens=6, rotary=rotary)
        found.append(loaded.decode(np.concatenate([ids, new]))[len(loaded.decode(ids)) :])
        talk.append({"role": "assistant", "content": found[-1]})
    return found


def test_turns_follow_on_each_other_until_new(say, folder):
    status, out, _ = say(["the cat", "", "and then", "/new", "the cat"], "--max-new-tokens=6")
    first, second = answers(folder, ["the cat", "and then"])
    assert status == 0 and out == f"{first}\n\n{second}\n\n{first}\n\n"
    assert second != answers(folder, ["and then"])[0]


def test_system_and_method_change_the_answers(say, folder):
    for options, given in (
        (("--system=be old",), {"system": "be old"}),
        (("--rotary=rope:base=30",), {"rotary": "rope:base=30"}),
    ):
        _, out, _ = say(["the cat", "/exit", "more"], "--max-new-tokens=6", *options)
        assert out == answers(folder, ["the cat"], **given)[0] + "\n\n"


def test_what_grows_too_long_or_is_cut_is_said(say):
    said = say(["the cat sat"], "--max-new-tokens=6")[2]
    assert "cut at --max-new-tokens 6" in said and "declared" not in said
    said = say(["the cat sat on the mat " * 4], "--max-new-tokens=6")[2]
    assert "more than the 64 that are declared" in said and "--rotary" in said
    said = say(["the cat sat on the mat " * 4], "--max-new-tokens=6", "--rotary=yarn:factor=4")[2]
    assert "declared" not in said


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([], ("--rotary=yarm",), "unknown rotary method 'yarm'"),
        ([], ("--max-new-tokens=0",), "max_new_tokens must be at least 1"),
        ([], ("--top-p=0.5",), "top_p=0.5 needs a temperature"),
        ([], ("--system=<eos>",), "message 0 holds '<eos>'"),
    ],
)
def test_what_is_wrong_is_one_line_before_parameters_are_read(
    say, monkeypatch, lines, options, words
):
    monkeypatch.setattr(model, "load", None)
    status, out, err = say(lines, *options)
    assert status == 2 and not out and words in err.splitlines()[-1]


def test_a_turn_that_the_template_refuses_ends_a_pipe(say):
    status, _, err = say(["end <eos> here"])
    assert status == 2 and "'<eos>'" in err.splitlines()[-1]


def test_a_checkpoint_without_a_template_is_refused(tmp_path, capsys):
    path, _ = write(tmp_path, "hf")
    (path / "tokenizer.json").write_text(tokenizer_json())
    assert cli.main(["chat", str(path)]) == 2
    assert "no chat template" in capsys.readouterr().err.splitlines()[-1]

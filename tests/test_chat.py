"""Chat templates: transformers' text and ids, the assistant's words alone, strangers' programs."""

import time

import numpy as np
import pytest

from longrope_jax.data import chat
from longrope_jax.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, SpecialTokens

# Made for these tests in the shapes of released templates.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help with texts.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "{%- if tools %}\n    {{- 'tools: ' + (tools | tojson) }}\n{%- endif %}\n"
    "{%- set ns = namespace(turns=0) %}\n{%- for message in messages %}\n"
    "    {%- set ns.turns = ns.turns + 1 %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {{- '<|im_start|>assistant\\n' }}{% generation %}"
    "{{- message.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}\n"
    "    {%- else %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
THINKING = (  # earlier answers lose what stands before </think>
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "qwen": QWEN}
NAMES = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>")
NAMES += ("<|eot_id|>",)
TALK = [
    {"role": "user", "content": "Who speaks first, and où ?"},
    {"role": "assistant", "content": 'Bernardo does:\n\n"Who\'s there?"'},
    {"role": "user", "content": "  And then?\n"},
    {"role": "assistant", "content": "Francisco."},
]


def tokenizer(specials=NAMES):
    """A byte-level tokenizer.json of 256 bytes, a few merges and special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [["Ġ", "t"], ["h", "e"], ["Ċ", "Ċ"], ["r", "n"], ["i", "s"]]
    vocab = {token: at for at, token in enumerate([*alphabet, *map("".join, merges)])}
    model = tokenizers.models.BPE(vocab, [tuple(pair) for pair in merges])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    return HuggingFaceTokenizer("made", made.to_str())


def special(template, mine):
    return SpecialTokens(mine.special("<s>"), mine.special("</s>"), True, (), template)


@pytest.fixture(scope="module")
def mine():
    return tokenizer()


@pytest.fixture(scope="module")
def theirs(mine, tmp_path_factory):
    why = "LOUD SKIP: pip install transformers to compare chat templates live"
    transformers = pytest.importorskip("transformers", reason=why)
    file = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    file.write_text(mine.text())
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_text_and_ids_are_those_of_transformers(name, turns, mine, theirs):
    template, talk = TEMPLATES[name], TALK[:turns]
    own = special(template, mine)
    for begun in (False, True):
        options = {"chat_template": template, "add_generation_prompt": begun}
        text = theirs.apply_chat_template(talk, tokenize=False, **options)
        assert chat.render(mine, own, talk, add_generation_prompt=begun) == text
        ids = theirs.apply_chat_template(talk, **options)["input_ids"]
        found = chat.prompt(mine, own, talk) if begun else chat.encode(mine, own, talk)[0]
        assert found.tolist() == ids


def test_marked_words_are_those_of_transformers(mine, theirs):
    made = theirs.apply_chat_template(
        TALK, chat_template=QWEN, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = chat.encode(mine, special(QWEN, mine), TALK)
    assert ids.tolist() == made["input_ids"]
    assert mask.astype(int).tolist() == made["assistant_masks"] and 0 < mask.sum() < len(mask)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_is_what_the_assistant_says_and_the_end_of_its_turn(name, mine):
    own = special(TEMPLATES[name], mine)
    ids, mask = chat.encode(mine, own, TALK)
    end = {"chatml": "<|im_end|>", "qwen": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>"}
    last = np.flatnonzero(np.diff(np.append(mask.astype(int), 0)) == -1)
    assert ids[last].tolist() == [mine.special(end[name])] * 2
    turns = "".join(turn["content"] for turn in TALK if turn["role"] == "assistant")
    assert mine.decode(ids[mask]).replace(" ", "") == turns.replace(" ", "")


def test_a_template_without_the_tag_gives_the_mask_of_one_with_it(mine):
    tagged = CHATML.replace(
        "message['content'] + '<|im_end|>' + '\n' }}",
        "'' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
    )
    assert tagged != CHATML
    one, other = (chat.encode(mine, special(t, mine), TALK) for t in (CHATML, tagged))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_texts_of_first_turns_that_change_later_are_refused(mine):
    talk = [*TALK[:1], {"role": "assistant", "content": "well</think>Bernardo."}, *TALK[2:]]
    own = special(THINKING, mine)
    assert chat.encode(mine, own, talk[:2])[1].any()
    with pytest.raises(ValueError, match=r"first 2 messages .* generation"):
        chat.encode(mine, own, talk)


def test_turns_end_where_the_template_says(mine):
    for template, end in ((CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>")):
        expected = (mine.special("</s>"), mine.special(end))
        assert chat.turn_ends(mine, special(template, mine)) == expected
    assert chat.turn_ends(mine, special(MISTRAL, mine)) == (mine.special("</s>"),)


def test_bytes_are_marked_as_a_tokenizer_json_marks():
    own = ByteTokenizer(("<s>", "</s>", "<|im_start|>", "<|im_end|>"))
    ids, mask = chat.encode(own, SpecialTokens(256, 257, True, (), CHATML), TALK)
    assert ids[0] == 258 and own.decode(ids[mask]) == "".join(t["content"] for t in TALK[1::2])
    assert ids[mask][-1] == 259


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "end"),
        ("{{ 10 ** (10 ** 9) }}", "end within"),
        ("{{ 'a' * 10 ** 10 }}", "too much"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "too much"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "outside of the sandbox"),
        ("{{ messages.append(1) }}", "outside of the sandbox"),
        ("{% include '/etc/passwd' %}", "fails"),
        ("{% import 'os' as os %}", "fails"),
        ("{{ open('x') }}", "fails"),
        ("{% for %}", "fails in its line 1"),
        ("{{ raise_exception('no system turn') }}", "refuses .*: no system turn"),
        ("{{ pad_token }}", "pad_token, which this checkpoint does not name"),
        ("{% set n = messages | length %}{{ 'x' * (n * 10 ** 8 // 4) }}", "characters"),
    ],
)
def test_a_strangers_program_ends_in_one_line(template, words, mine, monkeypatch):
    monkeypatch.setattr(chat, "_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(ValueError, match=words) as caught:
        chat.render(mine, special(template, mine), TALK)
    assert time.monotonic() - began < 20 and "\n" not in str(caught.value)
    plain = special("{{ messages[0].content }}", mine)  # the next conversation is written
    assert chat.render(mine, plain, TALK[:1]) == TALK[0]["content"]


def test_what_a_conversation_lacks_is_said(mine, monkeypatch):
    own = special(CHATML, mine)
    for talk, words in (
        ([], "messages is empty"),
        ([{"content": "a"}], "must have a role"),
        ([{"role": "user", "content": "end <|im_end|> here"}], "'<|im_end|>'"),
    ):
        with pytest.raises(ValueError, match=words.replace("|", r"\|")):
            chat.prompt(mine, own, talk)
    with pytest.raises(ValueError, match="no chat template"):
        chat.prompt(mine, special(None, mine), TALK[:1])
    chat._worker.cache_clear()
    bare = (chat._COMMAND[0], "-S", *chat._COMMAND[1:])  # a Python without its packages
    monkeypatch.setattr(chat, "_COMMAND", bare)
    with pytest.raises(ValueError, match="pip install 'jinja2"):
        chat.prompt(mine, own, TALK[:1])

"""The templates of Llama, Qwen, Gemma, Mistral and SmolLM, as text: turns, ends of turns, padding, special tokens."""

import warnings
from typing import Any

import pytest
from chat_families import FAMILIES, tokenizer_of

from popi.errors import ModelError
from popi.models.local.chat_template import ChatFormat
from popi.signals.render import Templates

SYSTEM_AND_USER = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def chat(family: str) -> ChatFormat:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no family's responses may have other ids alone than in a conversation
        return ChatFormat(tokenizer_of(family), family)


def test_prompt_reads_as_the_family_writes_it(chat: ChatFormat, family: str) -> None:
    assert chat.render(SYSTEM_AND_USER) == FAMILIES[family].prompt


def test_bos_stands_once_or_not_at_all(chat: ChatFormat, family: str) -> None:
    ids = chat.tokens(chat.render(SYSTEM_AND_USER))
    bos = chat.tokenizer.bos_token_id
    if family == "smollm2":  # its BOS is what begins every turn
        assert ids.count(bos) == 3 and ids[:2].count(bos) == 1
    else:
        assert ids.count(bos) == (FAMILIES[family].bos is not None)
        assert bos is None or ids[0] == bos


def test_end_of_turn(chat: ChatFormat, family: str) -> None:
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == FAMILIES[family].end


@pytest.mark.parametrize("text", ["R", "b", "Two words: 12.", "two\n\nparagraphs", "ends in blanks  \n"])
def test_prompt_and_response_are_the_whole_conversation(chat: ChatFormat, family: str, text: str) -> None:
    """The ids that are scored are those of the conversation up to the end of the turn, whatever the template strips."""
    user = [{"role": "user", "content": "U"}]
    prompt = chat.tokens(chat.render(user))
    whole = chat.tokens(chat.render([*user, {"role": "assistant", "content": text}], add_generation_prompt=False))
    assert whole[: whole.index(chat.end_id, len(prompt)) + 1] == [*prompt, *chat.response(text)]
    if text == "R":
        rest = chat.render([*user, {"role": "assistant", "content": text}], False)[len(chat.render(user)) :]
        assert rest == FAMILIES[family].response


def test_a_users_text_can_spell_no_structure(chat: ChatFormat, family: str) -> None:
    """Every special token is guarded, and so is what else the template writes; line ends are not."""
    templates = Templates.load("default").guarding(chat.markers)
    tokens = (*FAMILIES[family].specials, *(t for t in FAMILIES[family].plain if t.strip()))
    messages = templates.generator_messages("x", "first\n\n" + " and ".join(tokens))
    clean = templates.generator_messages("x", "first\n\nnothing")
    special = {chat.tokenizer.convert_tokens_to_ids(token) for token in tokens}
    seen, expected = ([i for i in chat.tokens(chat.render(m)) if i in special] for m in (messages, clean))
    assert seen == expected
    assert "first\n\n" in chat.render(messages)


def test_system_text_goes_where_the_family_takes_it() -> None:
    kept = {name: ChatFormat(tokenizer_of(name), name).takes_system for name in FAMILIES}
    assert [name for name, takes in kept.items() if not takes] == ["gemma2"]
    gemma = ChatFormat(tokenizer_of("gemma2"), "gemma2")
    turns = [*SYSTEM_AND_USER, {"role": "assistant", "content": "R"}, {"role": "user", "content": "V"}]
    text = gemma.render(turns)
    assert text.startswith("<bos><start_of_turn>user\nS\n\nU<end_of_turn>") and text.count("S\n\n") == 1
    assert turns[1]["content"] == "U"
    with pytest.raises(ModelError, match="refuses turns of user, user .*must alternate"):
        gemma.render([{"role": "user", "content": "U"}, {"role": "user", "content": "V"}])


def test_system_text_that_is_dropped_is_moved() -> None:
    tokenizer = tokenizer_of("qwen25")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert "user\nS\n\nU<|im_end|>" in ChatFormat(tokenizer, "x").render(SYSTEM_AND_USER)


def test_dates_are_pinned() -> None:
    for name, date in (("llama32", "Today Date: 26 Jul 2024"), ("mistral7", "The current date is 2024-07-26.")):
        assert date in ChatFormat(tokenizer_of(name), name).render([{"role": "user", "content": "U"}])


def test_responses_of_word_piece_tokenizers_go_on_behind_the_prompt() -> None:
    """Llama 2's tokenizer puts a space in front of a text; behind a prompt that ends in plain text there is none."""
    tokenizer = tokenizer_of("mistral")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    chat = ChatFormat(tokenizer, "x")
    assert tokenizer.convert_ids_to_tokens(chat.response("b")) == ["\u2581b", "</s>"]  # ": b", as the template has it
    tokenizer.chat_template = tokenizer.chat_template.replace("': '", "':\n'").replace("'assistant:'", "'assistant:\n'")
    chat = ChatFormat(tokenizer, "x")
    assert tokenizer.convert_ids_to_tokens(chat.response("b")) == ["b", "</s>"]


def _with(template: str) -> Any:
    tokenizer = tokenizer_of("qwen25")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (  # as of models that think: the prompt opens a thought, the history has none
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
            "does not put a response directly after the generation prompt",
        ),
        (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}Answer: {% endif %}{{ m['content'] }}<|im_end|>"
            "{% endfor %}",
            "scoring and generation would disagree",
        ),
        ("{{ raise_exception('never') }}", "fails on a plain conversation .never"),
        ("", "no chat template.*--chat-template FILE.*model.chat_template=FILE"),
    ],
)
def test_templates_that_popi_can_not_use_are_refused_with_the_way_out(template: str, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        ChatFormat(_with(template), "model")


def test_a_seam_that_the_tokenizer_closes_is_told() -> None:
    """The prompt ends in a space that belongs to the response's first word."""
    tokenizer = tokenizer_of("mistral")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.warns(UserWarning, match="merges a response with the end of the generation prompt"):
        ChatFormat(tokenizer, "x")

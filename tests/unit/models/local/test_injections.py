"""No attempt leaves its place: in any signal type and template set, through any family's tokens, in any API's block."""

import json
import re
from typing import Any, get_args

import pytest
from chat_families import FAMILIES, tokenizer_of
from injections import Injection, injections

from popi.serving.proxy.block import DEFAULT_BLOCK, Blocks
from popi.serving.proxy.inject import Api, inject
from popi.serving.proxy.strict_json import parse, serialise
from popi.signals.lookalikes import fold
from popi.signals.render import Templates, shipped
from popi.signals.types import (
    DemographicSignal,
    InteractionSignal,
    Message,
    PairSignal,
    PostSignal,
    Signal,
    StatementSignal,
)

CORPUS = injections()
PLAIN = "i like tea."


def every_signal(text: str) -> list[Signal]:
    """`text` in every field that takes text, of every type."""
    chat = [Message(role="system", content=text), Message(role="user", content=text)]
    return [
        PairSignal(prompt=text, chosen=PLAIN, rejected=PLAIN),
        PairSignal(prompt=PLAIN, chosen=text, rejected=PLAIN),
        PairSignal(prompt=PLAIN, chosen=PLAIN, rejected=text),
        PairSignal(prompt=chat, chosen=PLAIN, rejected="x"),
        InteractionSignal(prompt=text, response=PLAIN, rating=1),
        InteractionSignal(prompt=PLAIN, response=text, edit=PLAIN),
        InteractionSignal(prompt=PLAIN, response=PLAIN, edit=text),
        PostSignal(text=text, context=PLAIN),
        PostSignal(text=PLAIN, context=text),
        StatementSignal(text=text),
        DemographicSignal(text=text),
    ]


def usable(injection: Injection) -> bool:
    return bool(injection.text.strip())


def test_the_corpus_is_what_it_says() -> None:
    assert len(CORPUS) >= 200 and len({one.text for one in CORPUS}) == len(CORPUS) == len({one.id for one in CORPUS})
    kinds = {one.kind for one in CORPUS}
    assert kinds >= {"instruction", "role", "delimiter", "encoding", "invisible", "homoglyph", "link", "code"}
    assert kinds >= {"language", "markup", "preference"} and all(map(usable, CORPUS))


def tags(text: str, templates: Templates) -> list[str]:
    """All delimiters of a set and special tokens in a text, as a reader sees them, in order."""
    names = [re.escape(fold(one)) for one in templates.delimiters]
    return re.findall("|".join([*names, r"<\|[^<>\n]{1,64}\|>", r"\[/?inst\]", r"<</?sys>>", r"</?s>"]), fold(text))


@pytest.mark.parametrize("name", shipped())
def test_none_leaves_the_block_of_signals(name: str) -> None:
    templates = Templates.load(name)
    # A conversation inside of a signal is joined by line ends, whatever it says: the same in both.
    wanted = templates.inference_messages(every_signal(PLAIN), prompt=PLAIN)
    structure = [tags(message["content"], templates) for message in wanted]
    lines = [message["content"].count("\n") for message in wanted]
    for one in CORPUS:
        got = templates.inference_messages(every_signal(one.text), prompt=one.text)
        assert [message["role"] for message in got] == [message["role"] for message in wanted]
        assert [tags(message["content"], templates) for message in got] == structure, one.id
        if templates.single_line:  # there a line's end is what ends a signal
            assert [message["content"].count("\n") for message in got] == lines, one.id
            assert not any(set(message["content"]) & set("\r\v\f\x85\u2028\u2029") for message in got), one.id


@pytest.mark.parametrize("name", shipped())
def test_none_leaves_the_generators_block(name: str) -> None:
    templates = Templates.load(name)
    wanted = [tags(message["content"], templates) for message in templates.generator_messages(PLAIN, PLAIN)]
    for one in CORPUS:
        got = templates.generator_messages(PLAIN, one.text)
        assert [tags(message["content"], templates) for message in got] == wanted, one.id
        assert got[-1] == {"role": "user", "content": PLAIN}


@pytest.mark.parametrize("family", FAMILIES)
def test_none_becomes_a_special_token(family: str) -> None:
    tokenizer = tokenizer_of(family)
    special = {*FAMILIES[family].specials, *FAMILIES[family].plain} - {"\n", "\n\n"}
    unknown = "<unk>"  # what a vocabulary of few letters makes of all others
    ids = {tokenizer.convert_tokens_to_ids(token) for token in special if token != unknown}
    templates = Templates.load("default").guarding(special)

    def specials(text: str) -> list[int]:
        messages = templates.inference_messages(every_signal(text))
        if family == "gemma2":  # has no system turn; popi puts its text into the user's
            messages = [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return [token for token in encoded if token in ids]

    wanted = specials(PLAIN)
    assert wanted
    for one in CORPUS:
        assert specials(one.text) == wanted, one.id


BREAKS_OUT = re.compile(r"</?user_preferences|<\|[^<>\n]{1,64}\|>|\[/?inst\]|<</?sys>>|</?s>")
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": MESSAGES},
    "responses": {"model": "m", "instructions": "Be kind.", "input": "hi"},
    "messages": {"model": "m", "system": "Be kind.", "max_tokens": 9, "messages": MESSAGES[1:]},
}


def place(api: Api, body: Any) -> str:
    found = (
        body["messages"][0]["content"] if api == "chat" else body["instructions" if api == "responses" else "system"]
    )
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("api", get_args(Api))
def test_none_leaves_the_gateways_block(api: Api) -> None:
    blocks = Blocks()
    before, behind = DEFAULT_BLOCK.split("{summary}")
    plain = BODIES[api]
    raw = json.dumps(plain).encode()
    for one in CORPUS:
        personalised = inject(api, parse(raw, 1000, 100), blocks.text(one.text))
        assert personalised is not None
        body = json.loads(serialise(personalised))
        text = place(api, body)
        assert text.startswith(f"Be kind.\n\n{before}") and text.endswith(behind), one.id
        inside = text.removeprefix(f"Be kind.\n\n{before}").removesuffix(behind)
        assert not re.search(r"</?user_preferences|<\|[^<>\n]{1,64}\|>|\[/?inst\]|<</?sys>>|</?s>", fold(inside)), (
            one.id
        )
        assert "\U000e0069" not in inside
        # Everything else is what it was.
        if api == "chat":
            body["messages"][0]["content"] = "Be kind."
        else:
            body["instructions" if api == "responses" else "system"] = "Be kind."
        assert body == plain, one.id

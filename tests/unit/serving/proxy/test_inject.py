"""The block in each API's bodies: only the intended place changes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi.serving.proxy.block import Blocks
from popi.serving.proxy.inject import Api, inject
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.strict_json import parse, serialise

TEXT = '<p>a "b" ☃</p>'
AFTER = "\n\n" + TEXT
BLOCK = Blocks("<p>{summary}</p>").text('a "b" ☃')


def injected(api: Api, body: bytes) -> bytes | None:
    done = inject(api, parse(body, 1000, 100), BLOCK)
    return None if done is None else serialise(done)


def read(api: Api, body: Any) -> Any:
    done = injected(api, json.dumps(body).encode())
    return None if done is None else json.loads(done)


def test_chat_without_a_system_message() -> None:
    body = '{ "messages" : [ {"role":"user","content":"hö"} ] , "x":1.50 }'.encode()
    assert (
        injected("chat", body)
        == (
            '{"messages":[{"role":"system","content":"<p>a \\"b\\" ☃</p>"},{"role":"user","content":"hö"}],"x":1.50}'
        ).encode()
    )


def test_chat_behind_the_system_message() -> None:
    body = b'{"messages":[{"content":"Be\\u0020kind." ,"role":"system"},{"role":"user","content":"hi"}]}'
    assert (
        injected("chat", body)
        == (
            '{"messages":[{"content":"Be kind.\\n\\n<p>a \\"b\\" ☃</p>","role":"system"},'
            '{"role":"user","content":"hi"}]}'
        ).encode()
    )


SYSTEM, DEVELOPER, USER = ({"role": role, "content": f"as {role}"} for role in ("system", "developer", "user"))


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([SYSTEM, USER], 0),
        ([DEVELOPER, USER], 0),
        ([SYSTEM, DEVELOPER, USER, SYSTEM], 1),
        ([SYSTEM], 0),
    ],
)
def test_chat_takes_the_last_of_the_first_system_messages(messages: list[dict[str, str]], place: int) -> None:
    expected = [dict(message) for message in messages]
    expected[place]["content"] += AFTER
    assert read("chat", {"messages": messages}) == {"messages": expected}


def test_a_longer_conversation_begins_with_the_same_bytes() -> None:
    """What upstream prompt caches match."""
    turns = [SYSTEM, USER, {"role": "assistant", "content": "yes"}, USER]
    short = injected("chat", json.dumps({"messages": turns[:2]}).encode())
    long = injected("chat", json.dumps({"messages": turns}).encode())
    assert short is not None and long is not None
    assert long.startswith(short.removesuffix(b"]}"))


def test_chat_with_parts() -> None:
    cached = {"type": "text", "text": "Rules", "cache_control": {"type": "ephemeral"}}
    done = read("chat", {"messages": [{"role": "system", "content": [cached]}, USER]})
    assert done["messages"][0]["content"] == [cached, {"type": "text", "text": AFTER}]
    assert read("chat", {"messages": [{"role": "system", "content": []}]})["messages"][0]["content"] == [
        {"type": "text", "text": TEXT}
    ]
    assert read("chat", {"messages": [{"role": "system", "content": ""}]})["messages"][0]["content"] == TEXT


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"role": "system"}]},
        {"messages": [{"role": "system", "content": None}]},
        {"messages": [{"role": "system", "content": 7}]},
    ],
)
def test_chat_of_another_shape_is_left_alone(body: Any) -> None:
    assert read("chat", body) is None


@pytest.mark.parametrize(("api", "name"), [("responses", "instructions"), ("messages", "system")])
def test_one_text(api: Api, name: str) -> None:
    assert read(api, {"m": 1}) == {name: TEXT, "m": 1}
    assert read(api, {}) == {name: TEXT}
    assert read(api, {"m": 1, name: None}) == {"m": 1, name: TEXT}
    assert read(api, {name: "Be kind.", "m": 1}) == {name: "Be kind." + AFTER, "m": 1}
    assert read(api, {name: "", "m": 1}) == {name: TEXT, "m": 1}
    assert read(api, {name: 5}) is None
    assert read(api, {name: {}}) is None


def test_anthropic_breakpoints_keep_covering_what_they_covered() -> None:
    blocks = [{"type": "text", "text": "Rules", "cache_control": {"type": "ephemeral"}}]
    body = json.dumps({"system": blocks, "messages": [USER]}).encode()
    done = injected("messages", body)
    assert done is not None
    assert json.loads(done)["system"] == [*blocks, {"type": "text", "text": AFTER}]
    assert json.loads(injected("messages", b'{"system": [ ]}') or b"")["system"] == [{"type": "text", "text": TEXT}]


INPUT = {"type": "message", "role": "user", "content": "hi"}
OWN = {"role": "developer", "content": TEXT}


@pytest.mark.parametrize("more", [{}, {"instructions": "Be kind."}, {"prompt": {"id": "pmpt_1"}}])
def test_responses_behind_the_system_messages_in_the_input(more: dict[str, Any]) -> None:
    done = read("responses", {**more, "input": [SYSTEM, DEVELOPER, INPUT, SYSTEM]})
    behind = DEVELOPER | {"content": DEVELOPER["content"] + AFTER}
    assert done == {**more, "input": [SYSTEM, behind, INPUT, SYSTEM]}


def test_responses_behind_the_parts_of_a_system_message() -> None:
    parts = [{"type": "input_text", "text": "Be kind."}]
    done = read("responses", {"input": [{"type": "message", "role": "system", "content": parts}, INPUT]})
    assert done["input"][0]["content"] == [*parts, {"type": "input_text", "text": AFTER}]


@pytest.mark.parametrize("more", [{}, {"instructions": "Be kind."}])
def test_responses_behind_a_stored_prompt(more: dict[str, Any]) -> None:
    body = {**more, "prompt": {"id": "pmpt_1", "version": "2"}}
    assert read("responses", {**body, "input": "hi"}) == body | {"input": [OWN, {"role": "user", "content": "hi"}]}
    assert read("responses", {**body, "input": [INPUT]}) == body | {"input": [OWN, INPUT]}
    assert read("responses", body) == read("responses", {**body, "input": None}) == body | {"input": [OWN]}
    assert read("responses", {**body, "input": 7}) is None


@pytest.mark.parametrize(
    "given", ["hi", [INPUT], [INPUT, SYSTEM], [{"type": "item_reference", "id": "x"}], ["hi"], [], 7]
)
def test_responses_without_text_of_the_app_in_the_input(given: Any) -> None:
    body = {"input": given, "previous_response_id": "resp_1", "prompt": None}
    assert read("responses", body) == {**body, "instructions": TEXT}
    assert read("responses", {**body, "instructions": "Be kind."}) == {**body, "instructions": "Be kind." + AFTER}


def test_a_longer_input_begins_with_the_same_bytes() -> None:
    for more in ({}, {"prompt": {"id": "pmpt_1"}}):
        turns = [INPUT, {"role": "assistant", "content": "yes"}, INPUT]
        for first in ([], [DEVELOPER]):
            short = injected("responses", json.dumps({**more, "input": [*first, *turns[:1]]}).encode())
            long = injected("responses", json.dumps({**more, "input": [*first, *turns]}).encode())
            assert short is not None and long is not None
            assert long.startswith(short.removesuffix(b"]}"))


def test_a_system_message_in_the_input_of_another_shape_is_left_alone() -> None:
    assert read("responses", {"input": [{"role": "system"}], "instructions": "Be kind."}) is None
    with pytest.raises(Refusal, match="in lower case"):
        read("responses", {"input": [{"Role": "system", "content": "Be kind."}]})


def test_instructions_may_not_be_a_list() -> None:
    assert read("responses", {"instructions": []}) is None


@pytest.mark.parametrize("name", ["Role", "CONTENT", "\u017fole"])
def test_a_message_whose_fields_are_in_other_case(name: str) -> None:
    body = {"messages": [{name: "system", "content": "Be kind."}, USER]}
    if name.casefold() in ("role", "content"):
        with pytest.raises(Refusal, match="in lower case"):
            read("chat", body)
    else:
        assert read("chat", body)["messages"][0] == {"role": "system", "content": TEXT}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": st.text(max_size=20) | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})),
    },
    optional={"cache_control": JSON, "tool_calls": JSON},
)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"messages": st.lists(MESSAGE, min_size=1, max_size=5)},
        optional={"model": JSON, "tools": JSON, 'x"é': JSON, "system": st.text(), "instructions": st.text()},
    ),
    st.sampled_from(["chat", "responses", "messages"]),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_nothing_but_the_block_is_added(whole: dict[str, Any], api: Api, ascii_: bool, indent: int | None) -> None:
    try:
        body = json.dumps(whole, ensure_ascii=ascii_, indent=indent).encode()
    except UnicodeEncodeError:
        return  # halves of surrogate pairs
    done = injected(api, body)
    assert done is not None
    again = json.loads(done)
    # Taking the block out of what was read gives what was sent.
    if api == "chat":
        run = 0
        while run < len(whole["messages"]) and whole["messages"][run]["role"] in ("system", "developer"):
            run += 1
        if run == 0:
            assert again["messages"].pop(0) == {"role": "system", "content": TEXT}
        else:
            again["messages"][run - 1]["content"] = _shorter(again["messages"][run - 1]["content"])
    else:
        name = "instructions" if api == "responses" else "system"
        if name in whole:
            again[name] = _shorter(again[name])
        else:
            assert again.pop(name) == TEXT
    assert again == whole


def _shorter(content: Any) -> Any:
    if isinstance(content, str):
        assert content.endswith(TEXT)
        return content.removesuffix(AFTER) if content.endswith(AFTER) else content.removesuffix(TEXT)
    assert content[-1] == {"type": "text", "text": AFTER if len(content) > 1 else TEXT}
    return content[:-1]

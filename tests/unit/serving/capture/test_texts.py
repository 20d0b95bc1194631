"""Only the user's own words: chats about third persons, quotations, pasted conversations."""

import time

import pytest

from popi.serving.capture.texts import CUT, last_message, own_words

BOB = "bob wants everything in rhyme and hates numbers"


@pytest.mark.parametrize(
    "theirs",
    [
        f"> {BOB}\n> and so on",
        f"On Mon, 3 Nov 2026, Bob <bob@example.org> wrote:\n{BOB}",
        f"-----Original Message-----\n{BOB}",
        f"From: Bob\nTo: Ada\n\n{BOB}",
        f"```\n{BOB}\n```",
        f"```\n{BOB}",
        f'He wrote "{BOB}, always and everywhere".',
        f"He wrote “{BOB}, always and everywhere”.",
        f"Bob: {BOB}\nEve: me too\nBob: yes",
        f"[10:03] Bob: {BOB}\n[10:04] Eve: {BOB}",
    ],
)
def test_other_peoples_words_are_left_out(theirs: str) -> None:
    found = own_words(f"Help me to answer this, please.\n\n{theirs}")
    assert "rhyme" not in found and found.startswith("Help me to answer this, please.") and CUT in found


@pytest.mark.parametrize(
    "text",
    [
        "How do I make green tea?",
        "Note: I have no kettle.",
        'What does "serendipity" mean?',
        "Is 3 > 2? And is a>b the same?",
        "On Monday I wrote a test.",
        "Two things:\n- tea\n- cake",
    ],
)
def test_own_words_stay_as_they_are(text: str) -> None:
    assert own_words(text) == text


def test_nothing_of_their_own_is_nothing() -> None:
    assert own_words(f"> {BOB}") == "" and own_words("```\ncode\n```") == "" and own_words("...") == ""


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (
            "chat",
            {
                "messages": [
                    {"role": "system", "content": BOB},
                    {"role": "user", "content": "first"},
                    {"role": "assistant", "content": BOB},
                    {"role": "user", "content": [{"type": "text", "text": "mine"}, {"type": "image_url"}]},
                    {"role": "tool", "content": BOB},
                ]
            },
        ),
        ("responses", {"instructions": BOB, "input": [{"role": "user", "content": "mine"}, {"type": "message"}]}),
        ("responses", {"instructions": BOB, "input": "mine"}),
        (
            "messages",
            {
                "system": BOB,
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "mine"}]},
                    {"role": "assistant", "content": BOB},
                    {"role": "user", "content": [{"type": "tool_result", "content": BOB}]},
                ],
            },
        ),
    ],
)
def test_of_a_request_the_users_last_message_alone_counts(api: str, body: dict[str, object]) -> None:
    assert last_message(api, body) == "mine"  # type: ignore[arg-type]


def test_no_message_is_no_text() -> None:
    for body in ({}, {"messages": None}, {"messages": "x"}, {"messages": [1, None, {"role": "user"}]}):
        assert last_message("chat", body) == ""


def test_hostile_texts_take_no_time() -> None:
    for text in ("> " * 20_000, "-" * 40_000, '"' + "a " * 20_000, "```\n" * 10_000, "a: b\n" * 8_000, "[" * 40_000):
        began = time.process_time()
        own_words(text)
        assert time.process_time() - began < 5

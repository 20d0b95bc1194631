import gzip
import json

import pytest

from popi.serving.capture.answers import read_answer

CHAT = {
    "id": "c1",
    "choices": [{"index": 0, "message": {"content": "Tea."}}, {"index": 1, "message": {"content": "Té."}}],
}
RESPONSES = {
    "id": "r1",
    "output": [
        {"type": "reasoning"},
        {"type": "message", "content": [{"type": "output_text", "text": "Tea"}, {"type": "output_text", "text": "."}]},
    ],
}
MESSAGES = {"id": "m1", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Tea."}]}


def sse(*events: object) -> bytes:
    return b"".join(b"event: x\ndata: %b\n\n" % json.dumps(one).encode() for one in events) + b"data: [DONE]\n\n"


def test_each_api_in_one_piece_and_streamed() -> None:
    assert read_answer("chat", json.dumps(CHAT).encode(), "") == ("c1", {0: "Tea.", 1: "Té."})
    assert read_answer("responses", json.dumps(RESPONSES).encode(), "") == ("r1", {0: "Tea."})
    assert read_answer("messages", json.dumps(MESSAGES).encode(), "") == ("m1", {0: "Tea."})
    deltas = [{"id": "c1", "choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Té", "a", ".")]
    assert read_answer("chat", sse(*deltas, {"id": "c1", "choices": []}), "") == ("c1", {0: "Téa."})
    done = {"type": "response.completed", "response": RESPONSES}
    assert read_answer("responses", sse({"type": "response.created"}, done), "") == ("r1", {0: "Tea."})
    events = [
        {"type": "message_start", "message": {"id": "m1"}},
        {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Tea."}},
    ]
    assert read_answer("messages", sse(*events), "") == ("m1", {0: "Tea."})


def test_ids_that_are_missing_or_change_within_a_stream() -> None:
    assert read_answer("chat", json.dumps({"choices": CHAT["choices"]}).encode(), "")[0] == ""
    deltas = [{"id": f"c{n}", "choices": [{"index": 0, "delta": {"content": text}}]} for n, text in enumerate("Tea")]
    assert read_answer("chat", sse(*deltas), "") == ("c0", {0: "Tea"})


def test_packed_answers() -> None:
    packed = gzip.compress(json.dumps(CHAT).encode())
    assert read_answer("chat", packed, "gzip")[1][0] == "Tea."
    assert read_answer("chat", packed, "br") == read_answer("chat", packed[:-9], "gzip") == ("", {})
    assert read_answer("chat", gzip.compress(b" " * 2**23), "gzip") == ("", {})  # grows too long


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"choices": 3}', b"data: {", b'{"id": 3}'])
def test_what_is_no_answer_gives_none(raw: bytes) -> None:
    for api in ("chat", "responses", "messages"):
        assert read_answer(api, raw, "")[1] == {}  # type: ignore[arg-type]

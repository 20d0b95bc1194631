"""The official `openai` and `anthropic` clients work unchanged: only response headers reveal the gateway."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from unit.serving.proxy.recording import (
    APP_KEY,
    SUMMARY,
    Received,
    RecordingUpstream,
    RunningGateway,
    fixed,
    recording_upstream,
    running_gateway,
    until,
)

openai: Any = pytest.importorskip("openai")
anthropic: Any = pytest.importorskip("anthropic")

MESSAGES = [{"role": "system", "content": "You are kind."}, {"role": "user", "content": "Grüße ☃"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def json_reply(body: Any) -> Any:
    return fixed(json.dumps(body).encode(), "200 OK", "Content-Type: application/json", "x-request-id: req_1")


def stream_reply(events: list[bytes]) -> Any:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for event in events:
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(b"0\r\n\r\n")

    return reply


def completion(message: dict[str, Any], reason: str = "stop") -> Any:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": reason}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    return json_reply(
        {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


def chunks(*deltas: dict[str, Any]) -> Any:
    lines = [
        {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        for delta in deltas
    ]
    return stream_reply([*(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines), b"data: [DONE]\n\n"])


def call(arguments: str = '{"place": "Bonn"}') -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    with recording_upstream() as upstream, running_gateway(upstream, upstream_key="sk-upstream") as gateway:
        yield gateway


@pytest.fixture
def gateway(running: RunningGateway) -> RunningGateway:
    running.upstream.reply = RecordingUpstream().reply
    running.upstream.received.clear()
    return running


@pytest.fixture
def chat(gateway: RunningGateway) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=APP_KEY, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def claude(gateway: RunningGateway) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=gateway.url, api_key=APP_KEY, max_retries=0, timeout=20) as client:
        yield client


def test_openai(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = completion({"content": "hi"})
    raw = chat.chat.completions.with_raw_response.create(
        model="m", messages=MESSAGES, user="ann", extra_body={"made_up": [1, 2]}
    )
    assert raw.headers["x-popi-personalized"] == "applied" and raw.headers["x-popi-summary-version"] == "3"
    answer = raw.parse()
    assert answer.choices[0].message.content == "hi" and answer._request_id == "req_1"
    got = gateway.upstream.last
    system, user = got.json["messages"]
    assert system["content"].startswith("You are kind.\n\n<user_preferences>") and SUMMARY in system["content"]
    assert user == MESSAGES[1] and got.json["made_up"] == [1, 2] and got.json["user"] != "ann"
    assert got.header("authorization") == "Bearer sk-upstream"


def test_openai_tools_images_and_formats(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = completion({"content": None, "tool_calls": [call()]}, "tool_calls")
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Where?"}, IMAGE]},
        {"role": "assistant", "tool_calls": [call()]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    answer = chat.chat.completions.create(
        model="m",
        messages=messages,
        tools=[TOOL],
        tool_choice="auto",
        response_format=schema,
        extra_headers={"x-popi-user": "ann"},
    )
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"place": "Bonn"}'
    got = gateway.upstream.last.json
    assert got["messages"][0]["role"] == "system" and SUMMARY in got["messages"][0]["content"]
    assert got["messages"][1:] == messages
    assert (got["tools"], got["response_format"]) == ([TOOL], schema)


def test_openai_streams(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = chunks({"role": "assistant"}, {"content": "Grü"}, {"content": "ße ☃"})
    stream = chat.chat.completions.create(model="m", messages=MESSAGES, user="ann", stream=True)
    assert stream.response.headers["x-popi-personalized"] == "applied"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Grüße ☃"
    first, second = (call(part) | {"index": 0} for part in ('{"place"', ': "Bonn"}'))
    gateway.upstream.reply = chunks({"tool_calls": [first]}, {"tool_calls": [second]})
    stream = chat.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL], stream=True)
    parts = [chunk.choices[0].delta.tool_calls[0].function.arguments for chunk in stream]
    assert "".join(parts) == '{"place": "Bonn"}'


def test_openai_async(gateway: RunningGateway) -> None:
    gateway.upstream.reply = chunks({"content": "a"}, {"content": "b"})

    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=APP_KEY, max_retries=0) as client:

            async def one(user: str) -> str:
                stream = await client.chat.completions.create(model="m", messages=MESSAGES, user=user, stream=True)
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                return f"{stream.response.headers['x-popi-personalized']} {text}"

            return list(await asyncio.gather(*(one(user) for user in ("ann", "nobody") * 10)))

    assert asyncio.run(talk()) == ["applied ab", "none ab"] * 10
    personalised = [SUMMARY in got.json["messages"][0]["content"] for got in gateway.upstream.received]
    assert sum(personalised) == 10


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hi", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}


def test_openai_responses(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = json_reply(RESPONSE)
    answer = chat.responses.create(model="m", input="hello", safety_identifier="ann", previous_response_id="resp_0")
    assert answer.output_text == "hi"
    got = gateway.upstream.last.json
    assert SUMMARY in got["instructions"] and got["input"] == "hello" and got["safety_identifier"] != "ann"
    events = [
        {"type": "response.created", "response": RESPONSE | {"output": []}, "sequence_number": 0},
        {
            "type": "response.output_text.delta",
            "delta": "hi",
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "logprobs": [],
            "sequence_number": 1,
        },
        {"type": "response.completed", "response": RESPONSE, "sequence_number": 2},
    ]
    gateway.upstream.reply = stream_reply(
        [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    )
    stream = chat.responses.create(model="m", input="hello", instructions="Be kind.", user="ann", stream=True)
    assert [event.type for event in stream] == [event["type"] for event in events]
    assert gateway.upstream.last.json["instructions"].startswith("Be kind.\n\n<user_preferences>")


def test_openai_responses_keep_the_apps_text_in_front(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = json_reply(RESPONSE)
    asked: dict[str, Any] = {"model": "m", "safety_identifier": "ann"}
    developer = {"role": "developer", "content": "Be kind."}
    chat.responses.create(**asked, input=[developer, {"role": "user", "content": "hello"}])
    got = gateway.upstream.last.json
    assert got["input"][0]["content"].startswith("Be kind.\n\n<user_preferences>") and "instructions" not in got
    chat.responses.create(**asked, prompt={"id": "pmpt_1"}, input="hello")
    got = gateway.upstream.last.json
    assert [item["role"] for item in got["input"]] == ["developer", "user"] and "instructions" not in got
    assert SUMMARY in got["input"][0]["content"] and got["prompt"] == {"id": "pmpt_1"}


def test_counted_tokens_are_those_of_the_real_call(gateway: RunningGateway, chat: Any, claude: Any) -> None:
    """Token counts are requested for the same body as answers."""
    gateway.upstream.reply = json_reply({"object": "response.input_tokens", "input_tokens": 7})
    named: dict[str, Any] = {"extra_headers": {"x-popi-user": "ann"}}
    asked: dict[str, Any] = {"model": "m", "input": "hello", "instructions": "Be kind."}
    raw = chat.responses.input_tokens.with_raw_response.count(**asked, **named)
    assert raw.parse().input_tokens == 7 and raw.headers["x-popi-personalized"] == "applied"
    counted = gateway.upstream.last
    gateway.upstream.reply = json_reply(RESPONSE)
    chat.responses.create(**asked, **named)
    assert counted.target == "/v1/responses/input_tokens" and counted.json == gateway.upstream.last.json
    gateway.upstream.reply = json_reply({"input_tokens": 9})
    system = [{"type": "text", "text": "Long rules", "cache_control": {"type": "ephemeral"}}]
    asked = {"model": "m", "messages": ASK["messages"], "system": system}
    assert claude.messages.count_tokens(**asked, **named).input_tokens == 9
    counted = gateway.upstream.last
    gateway.upstream.reply = json_reply(ANSWER)
    claude.messages.create(**asked, max_tokens=5, **named)
    assert counted.target == "/v1/messages/count_tokens"
    assert counted.json | {"max_tokens": 5} == gateway.upstream.last.json
    assert SUMMARY in counted.json["system"][1]["text"] and counted.header("x-api-key") == "sk-upstream"


def test_openai_models_and_files(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = json_reply({"object": "list", "data": [{"id": "m", "object": "model"}]})
    assert [model.id for model in chat.models.list()] == ["m"]
    gateway.upstream.reply = json_reply(
        {"id": "f", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch"}
    )
    assert chat.files.create(file=("a.jsonl", b"{}\n" * 50_000), purpose="batch").id == "f"
    assert b"{}\n" * 50_000 in gateway.upstream.last.body


def test_openai_sees_the_upstreams_errors_and_ours(gateway: RunningGateway, chat: Any) -> None:
    body = json.dumps({"error": {"message": "slow down", "type": "x", "code": "y"}}).encode()
    gateway.upstream.reply = fixed(body, "429 Too Many Requests", "Retry-After: 9", "Content-Type: application/json")
    with pytest.raises(openai.RateLimitError, match="slow down") as limited:
        chat.chat.completions.create(model="m", messages=MESSAGES, user="ann")
    assert limited.value.response.headers["retry-after"] == "9"
    gateway.upstream.reply = fixed(b"oops", "500 Internal Server Error")
    with pytest.raises(openai.InternalServerError):
        chat.chat.completions.create(model="m", messages=MESSAGES)
    wrong = chat.with_options(api_key="popi-wrong")
    with pytest.raises(openai.AuthenticationError, match="no such key"):
        wrong.chat.completions.create(model="m", messages=MESSAGES)
    with pytest.raises(openai.APITimeoutError):
        gateway.upstream.reply = hang
        chat.with_options(timeout=0.2).chat.completions.create(model="m", messages=MESSAGES)


async def hang(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    event = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
    await asyncio.sleep(60)


def test_a_client_that_leaves_a_stream_stops_the_upstream(gateway: RunningGateway, chat: Any) -> None:
    gateway.upstream.reply = hang
    closed = gateway.upstream.closed
    stream = chat.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert next(iter(stream)).id == "c"
    stream.close()
    until(lambda: gateway.upstream.closed == closed + 1)


ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
EVENTS = [
    {"type": "message_start", "message": ANSWER | {"content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Grüße"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 2},
    },
    {"type": "message_stop"},
]
SSE = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in EVENTS]
ASK: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}


def test_anthropic(gateway: RunningGateway, claude: Any) -> None:
    gateway.upstream.reply = json_reply(ANSWER)
    raw = claude.messages.with_raw_response.create(**ASK, system="Be kind.", metadata={"user_id": "ann"})
    assert raw.headers["x-popi-personalized"] == "applied" and raw.parse().content[0].text == "hi"
    got = gateway.upstream.last
    assert got.json["system"].startswith("Be kind.\n\n<user_preferences>") and SUMMARY in got.json["system"]
    assert got.json["metadata"]["user_id"] != "ann" and got.json["messages"] == ASK["messages"]
    assert got.header("x-api-key") == "sk-upstream" and got.header("anthropic-version")


def test_anthropic_caching_and_tools(gateway: RunningGateway, claude: Any) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Bonn"}}
    gateway.upstream.reply = json_reply(ANSWER | {"content": [use], "stop_reason": "tool_use"})
    system = [{"type": "text", "text": "Long rules", "cache_control": {"type": "ephemeral"}}]
    tools = [{"name": "weather", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}]
    answer = claude.messages.create(**ASK, system=system, tools=tools, extra_headers={"x-popi-user": "ann"})
    assert answer.content[0].input == {"place": "Bonn"}
    got = gateway.upstream.last.json
    assert got["system"][:-1] == system and SUMMARY in got["system"][-1]["text"] and got["tools"] == tools
    assert "cache_control" not in got["system"][-1]


def test_anthropic_streams(gateway: RunningGateway, claude: Any) -> None:
    gateway.upstream.reply = stream_reply(SSE)
    with claude.messages.stream(**ASK, metadata={"user_id": "ann"}) as stream:
        assert "".join(stream.text_stream) == "Grüße"
        assert stream.response.headers["x-popi-personalized"] == "applied"


def test_anthropic_async_and_errors(gateway: RunningGateway) -> None:
    gateway.upstream.reply = stream_reply(SSE)

    async def talk() -> tuple[list[str], str]:
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=APP_KEY, max_retries=0) as client:

            async def one() -> str:
                async with client.messages.stream(**ASK, system="x", metadata={"user_id": "ann"}) as stream:
                    return "".join([text async for text in stream.text_stream])

            texts = list(await asyncio.gather(*(one() for _ in range(10))))
            with pytest.raises(anthropic.PermissionDeniedError) as refused:
                await client.with_options(api_key="popi-user-ann").messages.create(**ASK, metadata={"user_id": "bert"})
            return texts, refused.value.body["error"]["type"]

    assert asyncio.run(talk()) == (["Grüße"] * 10, "permission_error")

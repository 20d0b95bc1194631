"""The LLM that writes summaries: what it is asked, what is said where it fails, and that no user is quoted."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import FakeUpstream, content, status

from popi.errors import AnswerError, ConfigError, PopiError, UpstreamError
from popi.models.remote.retries import Retries
from popi.serving.worker.inference import InferenceSettings, Provider, read, reason_of, redacted
from popi.signals.types import StatementSignal

SIGNALS = [StatementSignal(text="my secret is that i like tea")]
QUICK = Retries(limit=0)


def settings(upstream: FakeUpstream, **more: Any) -> InferenceSettings:
    return InferenceSettings(url=f"{upstream.url}/v1", model="m", **more)


def sent(upstream: FakeUpstream, **more: Any) -> dict[str, Any]:
    settings(upstream, **more).connect(retries=QUICK).summarize(SIGNALS)
    return upstream.received[-1].body


def test_every_field_of_the_call_is_a_setting(upstream: FakeUpstream) -> None:
    plain = sent(upstream)
    assert (plain["max_tokens"], plain["temperature"], plain["model"]) == (512, 0.0, "m")
    assert plain["response_format"]["type"] == "json_schema" and "reasoning_effort" not in plain
    thinking = sent(
        upstream,
        max_tokens=3000,
        max_tokens_field="max_completion_tokens",
        temperature="default",
        reasoning_effort="low",
        structured=False,
        extra={"top_p": 0.5, "seed": 7},
    )
    assert thinking["max_completion_tokens"] == 3000 and thinking["reasoning_effort"] == "low"
    assert not thinking.keys() & {"max_tokens", "temperature", "response_format"}
    assert (thinking["top_p"], thinking["seed"]) == (0.5, 7)
    anthropic = sent(upstream, protocol="anthropic")
    assert anthropic["output_config"]["format"]["type"] == "json_schema" and "response_format" not in anthropic


def test_as_many_statements_as_set(upstream: FakeUpstream) -> None:
    upstream.answer = lambda messages: "\n".join(f"Likes the {name} tea." for name in ("green", "black", "white"))
    model = settings(upstream, max_clauses=2).connect(retries=QUICK)
    assert model.summarize(SIGNALS).statements == ("Likes the green tea.", "Likes the black tea.")
    assert "at most 2 statements" in str(upstream.received[0].body["messages"])


@pytest.mark.parametrize(
    ("protocol", "field"), [("openai", "response_format"), ("anthropic", "output_config: Extra inputs")]
)
def test_a_server_that_refuses_a_schema_is_asked_for_lines_from_then_on(
    upstream: FakeUpstream, protocol: str, field: str
) -> None:
    upstream.faults = [status(400, f"{field} is not supported")]
    model = settings(upstream, protocol=protocol).connect(retries=QUICK)
    assert model.summarize(SIGNALS).text == model.summarize(SIGNALS).text == "likes short answers."
    asked = [bool(one.body.keys() & {"response_format", "output_config"}) for one in upstream.received]
    assert asked == [True, False, False]


def test_another_refusal_is_none_of_a_schema(upstream: FakeUpstream) -> None:
    upstream.faults = [status(400, "max_tokens is not supported")]
    with pytest.raises(UpstreamError, match="400"):
        settings(upstream).connect(retries=QUICK).summarize(SIGNALS)
    assert len(upstream.received) == 1


def test_settings_come_from_the_file_and_from_what_is_given(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[inference]\nurl = "http://a/v1"\nmodel = "m"\nextra = { top_p = 0.5 }\n')
    found = read(file, model="n", key_env=None)
    assert (found.url, found.model, found.extra) == ("http://a/v1", "n", {"top_p": 0.5})
    assert read(None).url is None
    with pytest.raises(ConfigError, match="needs a url"):
        read(None, model="m").connect()
    for line, words in (
        ("nothing = 1", "nothing: no such setting"),
        ('temperature = "hot"', "temperature"),
        ("max_clauses = 0", "max_clauses"),
        ('url = "ftp://a"', "http"),
    ):
        file.write_text(f"[inference]\n{line}\n")
        with pytest.raises(ConfigError, match=words):
            read(file)


@pytest.mark.parametrize(
    ("fault", "reason", "told"),
    [
        (status(401, "Incorrect API key provided"), "answered 401: incorrect api key provided", "check the key"),
        (status(404, "The model `m` does not exist"), "answered 404: the model … does not exist", "URL and model"),
        (
            status(400, "Unsupported parameter: 'max_tokens' is not supported with this model."),
            "answered 400: unsupported parameter max_tokens is not supported with this model",
            'max_tokens_field = "max_completion_tokens"',
        ),
        (
            status(400, "'temperature' does not support 0.0 with this model"),
            "answered 400",
            'temperature = "default"',
        ),
        (status(503, "overloaded"), "answered 503: overloaded", "503"),
        (content(b"<html>"), "the provider answered 200", "is this the URL of a model API"),
    ],
)
def test_the_check_says_plainly_what_is_wrong(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture, fault: Any, reason: str, told: str
) -> None:
    upstream.faults = [fault]
    provider = Provider(settings(upstream).connect(retries=QUICK))
    assert provider.state == "unchecked"
    with caplog.at_level(logging.INFO, "popi.gateway.inference"):
        assert not provider.check()
        assert provider.state == "failing" and reason in provider.reason.casefold()
        assert told in caplog.text
        assert provider.check() and provider.state == "ok" and provider.reason == ""
    assert "i like tea" not in str(upstream.received[0].body)


def test_the_check_tells_an_answer_of_which_nothing_can_be_used(upstream: FakeUpstream) -> None:
    upstream.answer = lambda messages: "I'm sorry, but I can't help with that."
    provider = Provider(settings(upstream).connect(retries=QUICK))
    assert not provider.check() and provider.reason == "the model refused to write a summary"


def answered(text: str | None, finish: str = "stop", **more: Any) -> Any:
    message = {"role": "assistant", "content": text} | more
    return content(json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode())


@pytest.mark.parametrize(
    ("answer", "statements", "reason"),
    [
        (answered("<think>Tea?</think>Likes tea. Hates coffee."), ("Likes tea.", "Hates coffee."), None),
        (answered('{"statements": ["Likes tea.", "Hates cof', "length"), ("Likes tea.",), None),
        (answered("Likes tea. Hates cof", "length"), ("Likes tea.",), None),
        (answered("Likes tea \ud83c daily."), ("Likes tea daily.",), None),
        (answered("Likes tea.\n" * 400_000), ("Likes tea.",), None),
        (answered("tea " * 1_250_000), (), "cut off within its first statement"),
        (answered("<think>Well, the user", "length"), (), "nothing but hidden reasoning"),
        (answered("Es tut mir leid, das kann ich nicht."), (), "refused"),
        (answered(None, refusal="I can't talk about my secret."), (), "the provider's answer can't be read"),
        (answered("", "content_filter"), (), "the provider's answer can't be read"),
        (answered(""), (), "the provider's answer can't be read"),
    ],
    ids=range(11),
)
def test_what_models_really_answer(
    upstream: FakeUpstream, answer: Any, statements: tuple[str, ...], reason: str | None
) -> None:
    upstream.faults = [answer]
    model = settings(upstream).connect(retries=QUICK)
    if reason is None:
        assert model.summarize(SIGNALS).statements == statements
    else:
        with pytest.raises(PopiError) as error:
            model.summarize(SIGNALS)
        assert reason in reason_of(error.value)


@pytest.mark.parametrize(
    "words",
    [
        "Invalid prompt: 'my secret is that i like tea'",
        '{"input": "my secret is that i like tea"}',
        "flagged: MY SECRET, tea",
        "код: мой секрет tea",
    ],
)
def test_no_word_of_a_user_is_in_a_reason(words: str) -> None:
    for error in (
        UpstreamError(f"http://a: 400: {words}", status=400, server_message=words),
        UpstreamError(words, transient=True, server_message=words),
        UpstreamError(words),
        ZeroDivisionError(words),
    ):
        found = reason_of(error).casefold()
        assert "secret" not in found and "tea" not in found.split() and "секрет" not in found
    assert reason_of(AnswerError("the answer is empty")) == "the answer is empty"


def test_of_a_providers_words_those_of_apis_are_shown() -> None:
    said = "Rate limit reached for gpt-5 in organization org-123 on tokens per min"
    assert redacted(said) == "Rate limit reached for … in organization … on tokens …"
    assert redacted("Blorb!") == redacted("") == ""

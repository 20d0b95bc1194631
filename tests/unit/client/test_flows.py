"""What the client does about failures: a gateway that answers by a script, and no time that passes."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from popi import AsyncClient, Client, StatementSignal
from popi.client import ClauseEdit, async_client
from popi.client import client as blocking_client
from popi.client.flows import UPLOAD_BYTES
from popi.errors import ConfigError, DataError, GatewayError
from popi.models.remote.retries import Retries

KEY = "popi_abc_SECRET"
WHEN = datetime(2026, 1, 31, tzinfo=UTC).isoformat()


def version(number: int, text: str = "Short answers.", locked: bool = False) -> dict[str, Any]:
    clause = {"id": "c1", "text": text, "locked": locked, "signals": [], "attribution": None, "author": "user"}
    content = {"text": text, "clauses": [clause], "forbidden": []}
    return {"version": number, "updated_at": WHEN, "author": "user", **content}


def reply(status: int, body: Any, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def refusal(status: int, code: str, message: str = "no", **headers: str) -> httpx2.Response:
    return reply(status, {"error": {"code": code, "message": message}}, **headers)


class Script:
    """Answers in turn; an exception is raised instead."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.got: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.got.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


Ask = Callable[..., Any]


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []

    async def asleep(time: float) -> None:
        seconds.append(time)

    monkeypatch.setattr(blocking_client.time, "sleep", seconds.append)
    monkeypatch.setattr(async_client.asyncio, "sleep", asleep)
    return seconds


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, waited: list[float]) -> Ask:
    """Runs one call of either client on a script."""

    def run(script: Script, name: str, *args: Any, **settings: Any) -> Any:
        more = settings.pop("more", {})
        transport = httpx2.MockTransport(script)
        if request.param == "sync":
            with Client("http://gw:8600/", KEY, transport=transport, **settings) as client:
                return getattr(client, name)(*args, **more)

        async def both() -> Any:
            async with AsyncClient("http://gw:8600/", KEY, transport=transport, **settings) as client:
                return await getattr(client, name)(*args, **more)

        return asyncio.run(both())

    return run


def test_one_request_as_it_is_sent(ask: Ask) -> None:
    script = Script(reply(200, {"ids": ["s"], "added": 1, "duplicates": 0}))
    answer = ask(script, "add_signals", "a/b ☃", [StatementSignal(text="i like tea.", id="s")], tenant="acme")
    [sent] = script.got
    assert (answer.ids, answer.added, answer.duplicates) == (["s"], 1, 0)
    assert str(sent.url) == "http://gw:8600/users/a%2Fb%20%E2%98%83/signals" and sent.method == "POST"
    assert sent.headers["authorization"] == f"Bearer {KEY}" and sent.headers["x-popi-tenant"] == "acme"
    assert json.loads(sent.content) == {"signals": [{"id": "s", "type": "statement", "text": "i like tea."}]}


def test_waits_as_long_as_the_gateway_asks(ask: Ask, waited: list[float]) -> None:
    script = Script(refusal(429, "too_many", retry_after="7"), refusal(503, "store", retry_after="2"), reply(200, {}))
    with pytest.raises(GatewayError, match="something other than a SummaryAnswer"):
        ask(script, "summary", "ada")
    assert waited[0] == 7 and waited[1] == 2  # the back-off of the second retry is at most 2 seconds
    assert len(script.got) == 3


def test_gives_up_and_says_what_came_last(ask: Ask, waited: list[float]) -> None:
    script = Script(*[refusal(503, "store", "the store is busy") for _ in range(3)])
    with pytest.raises(GatewayError, match=r"503: the store is busy; given up after 3 tries") as caught:
        ask(script, "user", "ada", retries=Retries(limit=2))
    assert (caught.value.status, caught.value.code) == (503, "store") and len(waited) == 2
    script = Script(refusal(429, "too_many", retry_after="3600"))
    with pytest.raises(GatewayError, match="wait 3600 seconds, longer than 60"):
        ask(script, "user", "ada")
    script = Script(httpx2.ConnectError("refused"))
    with pytest.raises(GatewayError, match=r"the connection failed \(refused\); given up after 1 try") as caught:
        ask(script, "user", "ada", retries=Retries(limit=0))
    assert caught.value.status is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 412, 413, 422, 428, 500])
def test_what_no_retry_helps_is_told_at_once(ask: Ask, waited: list[float], status: int) -> None:
    script = Script(refusal(status, "word", "sentence"))
    with pytest.raises(GatewayError, match=f"{status}: sentence") as caught:
        ask(script, "export", "ada")
    assert (caught.value.status, caught.value.code) == (status, "word") and waited == []
    assert KEY not in str(caught.value)


def test_nobody_has_no_summary(ask: Ask) -> None:
    assert ask(Script(refusal(404, "no_user")), "summary", "ada") is None
    assert ask(Script(refusal(404, "no_summary")), "summary", "ada") is None
    with pytest.raises(GatewayError):  # a wrong URL is not a user without a summary
        ask(Script(httpx2.Response(404, text="nginx")), "summary", "ada")


def test_an_edit_names_the_version_that_it_replaces(ask: Ask) -> None:
    script = Script(reply(200, version(4)))
    assert ask(script, "put_summary", "ada", "Short answers.", more={"version": 3}).version == 4
    assert script.got[0].headers["if-match"] == '"3"'
    script = Script(reply(200, version(6)), reply(200, version(7, "Long.")))
    assert ask(script, "put_summary", "ada", "Long.").version == 7
    assert [sent.method for sent in script.got] == ["GET", "PUT"] and script.got[1].headers["if-match"] == '"6"'
    script = Script(refusal(404, "no_user"), reply(200, version(1)))
    ask(script, "put_summary", "ada", "Short answers.")
    assert "if-match" not in script.got[1].headers


def test_without_a_version_whatever_came_between_is_replaced_too(ask: Ask) -> None:
    script = Script(
        reply(200, version(6)),
        refusal(412, "version_conflict"),
        reply(200, version(7)),
        reply(200, version(8, "Long.")),
    )
    assert ask(script, "put_summary", "ada", "Long.").version == 8
    assert [sent.headers.get("if-match") for sent in script.got] == [None, '"6"', None, '"7"']
    script = Script(
        reply(200, version(6)),
        refusal(412, "version_conflict"),
        reply(200, version(7)),
        reply(200, version(8, "Long.")),
    )
    assert ask(script, "rollback", "ada", 2).version == 8
    assert [sent.headers.get("if-match") for sent in script.got] == [None, '"6"', None, '"7"']
    script = Script(refusal(412, "version_conflict"))  # a version that the caller named is never given up
    with pytest.raises(GatewayError):
        ask(script, "rollback", "ada", 2, more={"version": 6})


@pytest.mark.parametrize(("user_id", "path"), [(".", "/users/%2E"), ("..", "/users/%2E%2E"), ("a.b", "/users/a.b")])
def test_no_user_id_is_resolved_away(ask: Ask, user_id: str, path: str) -> None:
    script = Script(refusal(404, "no_user"))
    assert ask(script, "summary", user_id) is None
    assert script.got[0].url.raw_path.decode() == f"{path}/summary"


def test_an_edit_whose_answer_was_lost_is_found_again(ask: Ask) -> None:
    cut = httpx2.RemoteProtocolError("cut")
    script = Script(cut, refusal(412, "version_conflict"), reply(200, version(4, "Mine.")))
    assert ask(script, "put_summary", "ada", " Mine. ", more={"version": 3}).version == 4
    script = Script(cut, refusal(412, "version_conflict"), reply(200, version(4, "Mine.")))
    assert ask(script, "put_summary", "ada", "Mi\u200bne.", more={"version": 3}).version == 4  # the gateway cleans it
    clause = ClauseEdit(id="c1", text="Mine.", locked=True)
    script = Script(cut, refusal(428, "if_match_required"), reply(200, version(1, "Mine.", locked=True)))
    assert ask(script, "put_summary", "ada", more={"clauses": [clause], "version": 0}).version == 1
    for now in (version(4, "Another's."), version(5, "Mine.")):
        script = Script(cut, refusal(412, "version_conflict"), reply(200, now))
        with pytest.raises(GatewayError) as caught:
            ask(script, "put_summary", "ada", "Mine.", more={"version": 3})
        assert caught.value.status == 412
    script = Script(refusal(412, "version_conflict"))  # nothing was lost: the conflict is real
    with pytest.raises(GatewayError):
        ask(script, "put_summary", "ada", "Mine.", more={"version": 3})
    assert len(script.got) == 1


def test_a_rollback_whose_answer_was_lost_is_found_again(ask: Ask) -> None:
    cut = httpx2.ReadTimeout("slow")
    kept = {"versions": [version(4, "One."), version(3, "Two."), version(1, "One.")]}
    script = Script(cut, refusal(412, "version_conflict"), reply(200, kept))
    assert ask(script, "rollback", "ada", 1, more={"version": 3}).version == 4
    script = Script(cut, refusal(412, "version_conflict"), reply(200, kept))
    with pytest.raises(GatewayError):
        ask(script, "rollback", "ada", 3, more={"version": 3})


def test_a_merge_whose_answer_was_lost_has_nothing_left_to_move(ask: Ask) -> None:
    user = {"user_id": "ann", "created_at": WHEN, "signals": 3, "last_signal_at": None, "summary": None}
    user |= {"renewal": None, "controls": {"use": True, "learn": True}, "paused": False}
    gone = refusal(404, "no_user")
    script = Script(httpx2.ReadError("cut"), gone, reply(200, user))
    moved = ask(script, "merge", " ann-2", more={"into": "ann"})
    assert (moved.signals, moved.user.signals) == (0, 3)
    assert [(one.method, one.url.path) for one in script.got] == [
        ("POST", "/users/ann/merge"),
        ("POST", "/users/ann/merge"),
        ("GET", "/users/ann"),
    ]
    assert json.loads(script.got[0].content) == {"source": "ann-2"}
    with pytest.raises(GatewayError, match="404"):
        ask(Script(gone), "merge", "ann-2", more={"into": "ann"})
    with pytest.raises(DataError, match="U\\+200B"):
        ask(Script(), "merge", "ann\u200b", more={"into": "ann"})


def test_a_key_is_never_made_twice(ask: Ask, waited: list[float]) -> None:
    made = {"key_id": "k", "scope": "app", "tenant": "shop", "user_id": None, "created_at": WHEN, "revoked_at": None}
    script = Script(refusal(429, "too_many"), reply(201, made | {"key": "popi_k_secret"}))  # 429: not served
    assert ask(script, "create_key", "app", more={"tenant": "shop"}).key == "popi_k_secret"
    assert json.loads(script.got[1].content) == {"scope": "app", "tenant": "shop"} and len(waited) == 1
    for lost in (httpx2.ReadError("cut"), refusal(503, "store")):
        script = Script(lost)
        with pytest.raises(GatewayError, match="may have succeeded nevertheless"):
            ask(script, "create_key", "app")
        assert len(script.got) == 1


def test_a_change_is_made_anew_on_what_came_between(ask: Ask) -> None:
    script = Script(
        reply(200, version(3, "A.")),
        refusal(412, "version_conflict"),
        reply(200, version(4, "A. B.")),
        reply(200, version(5, "A. B. C.")),
    )
    assert ask(script, "edit_summary", "ada", lambda now: f"{now.text} C.").version == 5
    assert json.loads(script.got[3].content) == {"text": "A. B. C."} and script.got[3].headers["if-match"] == '"4"'
    script = Script(*[reply(200, version(3)), refusal(412, "version_conflict")] * 5)
    with pytest.raises(GatewayError):
        ask(script, "edit_summary", "ada", lambda now: "C.")
    assert len(script.got) == 10


def test_a_change_that_is_too_long_is_told_as_data(ask: Ask) -> None:
    with pytest.raises(DataError, match="text: "):
        ask(Script(reply(200, version(3))), "edit_summary", "ada", lambda now: "x" * 20_001)


def test_many_signals_go_in_several_uploads(ask: Ask) -> None:
    def answer(sent: httpx2.Request) -> httpx2.Response:
        number = len(json.loads(sent.content)["signals"])
        sizes.append((number, len(sent.content)))
        return reply(200, {"ids": ["x"] * number, "added": number, "duplicates": 0})

    sizes: list[tuple[int, int]] = []
    signals = [StatementSignal(text=f"word {n}") for n in range(2300)]
    assert ask(answer, "add_signals", "ada", signals).added == 2300
    assert [number for number, _ in sizes] == [1000, 1000, 300]
    sizes.clear()
    ask(answer, "add_signals", "ada", [StatementSignal(text="x" * 1_500_000) for _ in range(3)])
    assert [number for number, _ in sizes] == [2, 1] and all(size < UPLOAD_BYTES + 100 for _, size in sizes)
    sizes.clear()
    assert ask(answer, "add_signals", "ada", []).ids == [] and sizes == []


def test_what_cannot_be_right_is_told_before_anything_is_sent(ask: Ask) -> None:
    script = Script()
    for name, args, more, words in (
        ("user", (" ",), {}, "blank"),
        ("put_summary", ("ada",), {}, "either text or clauses"),
        ("put_summary", ("ada", "x" * 20_001), {}, "text: "),
        ("import_users", ([],), {}, "users: "),
    ):
        with pytest.raises(DataError, match=words):
            ask(script, name, *args, more=more)


def test_a_client_needs_a_url_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="URL of the gateway"):
        Client("gw:8600", KEY)
    monkeypatch.delenv("POPI_KEY", raising=False)
    with pytest.raises(ConfigError, match="popi keys create"):
        Client("http://gw:8600")
    with pytest.raises(ConfigError, match="key for the gateway is empty, or has spaces"):
        Client("http://gw:8600", "a\nb")
    for tenant in ("", "sh\u00f6p", "a b"):
        with pytest.raises(ConfigError, match="tenant's name"):
            Client("http://gw:8600", KEY, tenant=tenant)
    monkeypatch.setenv("POPI_KEY", KEY)
    assert KEY not in repr(Client("http://gw:8600")) and KEY not in str(vars(Client("http://gw:8600")))

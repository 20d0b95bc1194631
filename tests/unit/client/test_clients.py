"""Both clients against a gateway in this process: every call does what it says, and a key reaches what it may."""

import asyncio
import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from popi import AsyncClient, Client, PairSignal, Signal, StatementSignal, User
from popi.client import ClauseEdit, SummaryEdit
from popi.errors import DataError, GatewayError
from popi.serving.app import Gateway
from popi.serving.connections import uvicorn_settings
from popi.serving.keys import create
from popi.serving.settings import ServerSettings, read
from popi.serving.store.database import Database

PAIRS: list[Signal] = [
    PairSignal(id=f"p{n}", prompt=f"what is {word}?", chosen=f"a {word}", rejected=f"the {word} is")
    for n, word in enumerate(("amber", "birch", "cedar"))
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Its URL, and keys by name."""
    folder: Path = tmp_path_factory.mktemp("store")
    environment = pytest.MonkeyPatch()
    environment.setenv("POPI_ADMIN_KEY", "an-admin-key-of-the-tests")
    database = Database.open(f"sqlite:///{folder}/popi.db")
    keys = {
        "app": create(database, "app", "acme")[0],
        "other": create(database, "app", "other")[0],
        "ada": create(database, "user", "acme", "ada")[0],
        "admin": "an-admin-key-of-the-tests",
    }
    app = Gateway(database, read(None, upstream="http://127.0.0.1:9"))
    settings = uvicorn_settings(ServerSettings())
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the gateway did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", keys
    server.should_exit = True
    thread.join(20)
    environment.undo()


class Awaited:
    """An AsyncClient whose calls wait."""

    def __init__(self, url: str, key: str, **settings: Any) -> None:
        self.made = (url, key, settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            async def run() -> Any:
                url, key, settings = self.made
                async with AsyncClient(url, key, **settings) as client:
                    called = getattr(client, name)(*args, **more)
                    return [one async for one in called] if inspect.isasyncgen(called) else await called

            return asyncio.run(run())

        return call


@pytest.mark.parametrize("kind", [Client, Awaited])
def test_a_user_from_the_first_signal_to_the_last_byte(gateway: tuple[str, dict[str, str]], kind: Any) -> None:
    url, keys = gateway
    client = kind(url, keys["app"])
    name = f"a/b {kind.__name__} ☃"
    assert client.summary(name) is None
    answer = client.add_signals(name, PAIRS)
    assert answer.ids == ["p0", "p1", "p2"] and answer.added == 3
    assert client.add_signals(name, PAIRS).duplicates == 3
    first = client.put_summary(name, "Likes amber. Likes birch.")
    assert first.version == 1 and [clause.text for clause in first.clauses] == ["Likes amber.", "Likes birch."]
    with pytest.raises(GatewayError) as caught:
        client.put_summary(name, "Another's.", version=0)
    assert (caught.value.status, caught.value.code) == (428, "if_match_required")
    kept = ClauseEdit(id=first.clauses[0].id, text="Likes amber.", locked=True, signals=["p0"])
    second = client.put_summary(name, clauses=[kept], version=1)
    assert second.clauses[0].locked and second.clauses[0].id == first.clauses[0].id
    with pytest.raises(GatewayError) as caught:
        client.put_summary(name, "Late.", version=1)
    assert (caught.value.status, caught.value.code) == (412, "version_conflict")
    third = client.edit_summary(name, lambda now: SummaryEdit(text=f"{now.text} And cedar."))
    assert third.text == "Likes amber. And cedar." and third.clauses[0].locked
    assert client.rollback(name, 1).text == first.text
    assert [one.version for one in client.versions(name)] == [4, 3, 2, 1]
    told = client.rebuild(name)
    assert told == client.user(name)
    assert told.signals == 3 and told.summary.version == 4 and told.renewal is not None
    assert len(client.export(name).signals) == 3
    assert client.controls(name).learn and client.set_controls(name, learn=False).use
    assert client.add_signals(name, [StatementSignal(text="hi")]).ignored == 1
    assert client.set_controls(name, use=False, learn=True) == client.controls(name)
    with pytest.raises(GatewayError) as caught:
        client.feedback(name, "popi-1", thumbs="up")
    assert (caught.value.status, caught.value.code) == (404, "no_answer")
    with pytest.raises(DataError, match="one of thumbs"):
        client.feedback(name, "popi-1", thumbs="up", edit="x")
    with pytest.raises(DataError, match="use, learn or both"):
        client.set_controls(name)
    done = client.delete_clause(name, first.clauses[1].id, forbid=True)
    assert (done.clauses, done.version, done.data_on_disk) == (1, 5, "overwritten")
    [banned] = client.summary(name).forbidden
    assert banned.text is None and client.delete_words(name, banned.id).version == 5
    assert client.delete_version(name, 1).versions == 1
    client.add_signals(name, [StatementSignal(id="a/b ☃?", text="hi")])
    assert client.delete_signal(name, "a/b ☃?").signals == 1
    for nasty in (".", "..", "a/../..", "?signals=true"):
        client.add_signals(name, [StatementSignal(id=nasty, text="hi")])
        assert client.delete_signal(name, nasty).signals == 1
    with pytest.raises(GatewayError) as caught:
        client.delete_signal(name, "a/b ☃?")
    assert (caught.value.status, caught.value.code) == (404, "no_signal")
    line = client.training_line(name)
    assert line.user_id == name and len(line.signals) == 1 and len(line.targets) == 2
    receipt = client.erase(name)
    assert receipt.removed.signals == 3 and receipt.removed.summary_versions == 3
    assert client.erase(name).removed.users == 0 and client.summary(name) is None
    answer = client.import_users([line, User(user_id=f"{name}2", signals=[StatementSignal(text="hi")])])
    assert (answer.users, answer.added) == (2, 4)
    moved = client.merge(f"{name}2", into=f" {name}")
    assert (moved.signals, moved.user.user_id, moved.user.signals) == (1, name, 4)
    with pytest.raises(GatewayError) as caught:
        client.merge(f"{name}2", into=name)
    assert (caught.value.status, caught.value.code) == (404, "no_user")


@pytest.mark.parametrize("user_id", [".", "..", "%2E", "a/../b", "?x=1#y", "me"])
def test_any_user_id_is_one_user_of_its_own(gateway: tuple[str, dict[str, str]], user_id: str) -> None:
    url, keys = gateway
    with Client(url, keys["app"]) as client:
        assert client.put_summary(user_id, f"I am {user_id!r}.").version == 1
        assert client.user(user_id).user_id == user_id == client.export(user_id).user_id
        assert client.erase(user_id).removed.users == 1


@pytest.mark.parametrize("kind", [Client, Awaited])
def test_a_key_reaches_what_it_may(gateway: tuple[str, dict[str, str]], kind: Any) -> None:
    url, keys = gateway
    kind(url, keys["app"]).put_summary("ada", "Secretive.", version=None)
    assert kind(url, keys["ada"]).summary("ada").text == "Secretive."
    with pytest.raises(GatewayError) as caught:
        kind(url, keys["ada"]).summary("ben")
    assert caught.value.status == 403
    assert kind(url, keys["other"]).summary("ada") is None
    assert kind(url, keys["admin"], tenant="acme").summary("ada").author == "user"
    with pytest.raises(GatewayError, match="check that the key is valid"):
        kind(url, "popi_0000_nonsense").summary("ada")


@pytest.mark.parametrize("kind", [Client, Awaited])
def test_an_admin_makes_lists_and_revokes_keys(gateway: tuple[str, dict[str, str]], kind: Any) -> None:
    url, keys = gateway
    admin = kind(url, keys["admin"])
    tenant = f"new-{kind.__name__}"
    made = admin.create_key("app", tenant=tenant)
    assert made.tenant == tenant and tenant in list(admin.tenants())
    client = kind(url, made.key)
    users = [f"u{n:04}" for n in range(1001)]  # more than a page
    client.import_users([User(user_id=name, signals=[StatementSignal(text="hi")]) for name in [*users, "v"]])
    assert list(client.users("u")) == users and list(client.users()) == [*users, "v"]
    own = admin.create_key("user", tenant=tenant, user_id="v")
    assert [one.key_id for one in admin.keys(tenant)] == [made.key_id, own.key_id]
    assert kind(url, own.key).user("v").signals == 1
    assert admin.revoke_key(own.key_id).revoked_at is not None
    with pytest.raises(GatewayError, match="check that the key is valid"):
        kind(url, own.key).user("v")
    with pytest.raises(DataError, match="user_id"):
        admin.create_key("user", tenant=tenant)


def test_a_user_pauses_and_opens_their_page(gateway: tuple[str, dict[str, str]]) -> None:
    url, keys = gateway
    with Client(url, keys["app"]) as client:
        client.put_summary("pia", "Likes tea.")
        assert client.pause("pia").paused and client.user("pia").paused
        assert not client.pause("pia", paused=False).paused and not client.user("pia").paused
        page = httpx2.get(client.link("pia").url, follow_redirects=True)
        assert page.status_code == 200 and "Likes tea." in page.text


# -- every operation ------------------------------------------------------------------------------------------------

WITHOUT_A_METHOD = {
    "healthz": "for load balancers, which ask without a key",
    "readyz": "likewise",
}
CALLS: dict[str, tuple[Any, ...]] = {
    "user": ("ann",),
    "add_signals": ("ann", PAIRS),
    "signals": ("ann", "tea"),
    "summary": ("ann",),
    "put_summary": ("ann", "Likes tea."),
    "edit_summary": ("ann", lambda now: "Likes green tea."),
    "versions": ("ann",),
    "rollback": ("ann", 1),
    "rebuild": ("ann",),
    "delete_clause": ("ann", "a-clause"),
    "delete_version": ("ann", 99),
    "delete_signal": ("ann", "a-signal"),
    "delete_words": ("ann", "a-ban"),
    "controls": ("ann",),
    "set_controls": ("ann",),
    "feedback": ("ann", "an-answer"),
    "export": ("ann",),
    "training_line": ("ann",),
    "import_users": ([User(user_id="ann", signals=PAIRS)],),
    "merge": ("ben",),
    "erase": ("ann",),
    "pause": ("ann",),
    "link": ("ann",),
    "users": ("a",),
    "tenants": (),
    "keys": ("acme",),
    "audit": ("acme", "ann"),
    "create_key": ("app",),
    "revoke_key": ("a-key",),
}
"""A call of each method; by name, what else it takes: `MORE`."""
MORE: dict[str, dict[str, Any]] = {
    "delete_clause": {"signals": True, "forbid": True},
    "set_controls": {"learn": True},
    "feedback": {"thumbs": "up"},
    "merge": {"into": "ann"},
}


def methods_of(client: type) -> dict[str, inspect.Signature]:
    found = {name: one for name, one in vars(client).items() if callable(one) and not name.startswith("_")}
    return {name: inspect.signature(one) for name, one in found.items() if name != "close"}


def test_every_operation_of_the_gateway_has_a_method(gateway: tuple[str, dict[str, str]]) -> None:
    """What the methods send, against what the OpenAPI document lists. Whoever adds an operation adds a method, or says
    in WITHOUT_A_METHOD why there is none.
    """
    url, keys = gateway
    document = httpx2.get(f"{url}/openapi.json").json()
    assert methods_of(Client).keys() == CALLS.keys()
    sent: list[httpx2.Request] = []

    class Noted(httpx2.HTTPTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            sent.append(request)
            return super().handle_request(request)

    with Client(url, keys["admin"], tenant="acme", transport=Noted()) as client:
        for name, args in CALLS.items():
            try:
                called = getattr(client, name)(*args, **MORE.get(name, {}))
                list(called) if inspect.isgenerator(called) else None
            except GatewayError as error:  # refused by the operation itself
                assert error.status == 404 and error.code != "no_such_path", (name, error)

    def operation(request: httpx2.Request) -> str:
        path, _, query = request.url.raw_path.decode().partition("?")
        for template, operations in document["paths"].items():
            if request.method.lower() in operations and re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
                found = operations[request.method.lower()]
                taken = {one["name"] for one in found.get("parameters", ()) if one["in"] == "query"}
                assert {one.partition("=")[0] for one in query.split("&") if one} <= taken
                return str(found["operationId"])
        raise AssertionError(f"{request.method} {path} is not in the OpenAPI document")

    listed = {one["operationId"] for operations in document["paths"].values() for one in operations.values()}
    assert {operation(one) for one in sent} == listed - WITHOUT_A_METHOD.keys()
    assert listed >= WITHOUT_A_METHOD.keys()


def test_both_clients_have_the_same_methods() -> None:
    def taken(client: type) -> dict[str, list[inspect.Parameter]]:
        return {name: list(signature.parameters.values()) for name, signature in methods_of(client).items()}

    assert taken(Client) == taken(AsyncClient)

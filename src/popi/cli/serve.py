"""Commands of the gateway: serve, worker, keys, users. Imports nothing of it until a command runs."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popi.cli.shared import Force, Method, console, loading, need_training, out
from popi.errors import ConfigError, DataError, ModelError
from popi.profiles.user_id import normal_user_id

if TYPE_CHECKING:
    from popi.serving.store.database import Database
    from popi.serving.webhooks import Deliverer
    from popi.serving.worker.inference import InferenceSettings
    from popi.serving.worker.renewal import Worker

app = typer.Typer()
keys_app = typer.Typer(help="Keys of the gateway: make, list, revoke.", no_args_is_help=True)
users_app = typer.Typer(help="Users of the gateway: list, show, export, erase.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(users_app, name="users")

STORE = "sqlite:///popi.db"
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="POPI_STORE",
        help="Where users are kept: sqlite:///FILE or postgresql://…; with a password, rather in POPI_STORE.",
        metavar="URL",
    ),
]
Tenant = Annotated[str, typer.Option(help="Whose users: the name of an app or team.")]
Settings = Annotated[Path | None, typer.Option("--config", help="TOML file of settings (docs/gateway_settings.md).")]
InferenceUrl = Annotated[
    str | None,
    typer.Option("--inference-url", help="URL of the LLM that writes summaries: https://host/v1.", metavar="URL"),
]
InferenceModelName = Annotated[str | None, typer.Option(help="That LLM, as its API calls it.")]
InferenceProtocol = Annotated[str | None, typer.Option(help="What its API speaks: openai or anthropic.")]
InferenceKeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the key for it.")]


@app.command()
def serve(
    upstream: Annotated[
        str | None,
        typer.Option(help="The model API behind the gateway: https://host/v1 (docs/serving.md).", metavar="URL"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8600,
    store: StoreUrl = STORE,
    upstream_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the gateway's own key for the upstream.")
    ] = None,
    settings: Settings = None,
    inference_url: InferenceUrl = None,
    inference_model: InferenceModelName = None,
    inference_protocol: InferenceProtocol = None,
    inference_key_env: InferenceKeyEnv = None,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Renew summaries in this process.")] = True,
    demo: Annotated[
        bool, typer.Option("--demo", help="Try it offline: the nano model as upstream and inference model.")
    ] = False,
) -> None:
    """Start the gateway: any OpenAI or Anthropic client, personalised by its end users' summaries."""
    _need_serving()
    from popi.serving.proxy.logs import to_stderr
    from popi.serving.server import run

    to_stderr()
    if demo:
        if upstream is not None or inference_url is not None:
            raise typer.BadParameter("--demo brings its own upstream and inference model; leave out --upstream")
        need_training()
        from popi.serving.demo import run_demo

        run_demo(host, port, None if store == STORE else store)
        return
    from popi.serving.settings import read

    found = read(settings, upstream=upstream, upstream_key=_key(upstream_key_env))
    database = _open(store)
    inference = _inference(settings, inference_url, inference_model, inference_protocol, inference_key_env)
    renewer = None
    if inference.url is not None and worker:
        renewer = _api_worker(database, settings, inference)
    elif worker:
        console.print(
            "no inference model: signals are stored, but summaries are not renewed here; name one with "
            "--inference-url and --inference-model, or start `popi worker`",
            highlight=False,
        )
    run(database, found, host, port, renewer)


@app.command()
def worker(
    store: StoreUrl = STORE,
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run that writes summaries.")] = None,
    method: Method = None,
    model: Annotated[str | None, typer.Option(help="Or a model: `nano`, a folder, a GGUF file or a hub id.")] = None,
    inference_url: InferenceUrl = None,
    inference_model: InferenceModelName = None,
    inference_protocol: InferenceProtocol = None,
    inference_key_env: InferenceKeyEnv = None,
    settings: Settings = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Renewals at once: 4 with --inference-url, else always 1.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port with metrics for Prometheus; none by default.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of that port.")] = "127.0.0.1",
) -> None:
    """Renew stale summaries, until stopped. Any number of workers may share a store."""
    _need_serving()
    if sum(one is not None for one in (run, model, inference_url)) > 1:
        raise typer.BadParameter("name what writes summaries: --run, --model or --inference-url, one of the three")
    local = run is not None or model is not None
    inference = _inference(settings, inference_url, inference_model, inference_protocol, inference_key_env, threads)
    if not local and inference.url is None:
        raise typer.BadParameter(
            "name what writes summaries: --run, --model or --inference-url (or [inference]), one of the three"
        )
    if local and threads not in (None, 1):
        raise typer.BadParameter("--threads goes with --inference-url; a model in this process writes one at a time")
    from popi.serving.proxy.logs import to_stderr

    to_stderr()
    database = _open(store)
    if not local:
        renewer = _api_worker(database, settings, inference)
    else:
        renewer = _local_worker(database, settings, run, method, model)
    deliverer = _deliverer(database, settings)
    if deliverer is not None:
        renewer.metrics.registry.register(deliverer.registry)
    if metrics_port is not None:
        from prometheus_client import start_http_server

        try:
            start_http_server(metrics_port, metrics_host, registry=renewer.metrics.registry)
        except OSError as error:
            raise ConfigError(f"can't listen at {metrics_host}:{metrics_port} ({error.strerror})") from None
    signal.signal(signal.SIGTERM, lambda *_: renewer.stop(0))
    renewer.start()
    if deliverer is not None:
        deliverer.start()
    console.print("renewing summaries; Ctrl-C ends it", highlight=False)
    try:
        renewer.wait()
    finally:
        renewer.stop()
        if deliverer is not None:
            deliverer.stop()
        database.close()


# -- keys -----------------------------------------------------------------------------------------------------------


@keys_app.command("create")
def keys_create(
    scope: Annotated[
        str, typer.Option(help="app: speaks for its tenant's users; user: one user's profile; admin: everything.")
    ],
    tenant: Tenant = "default",
    user: Annotated[str | None, typer.Option(help="Of a user key: the user's id.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Make a key, and its tenant if that is new. It is shown once: the store keeps a hash."""
    _need_serving()
    from popi.serving.keys import create

    if scope not in ("admin", "app", "user"):
        raise typer.BadParameter(f"--scope must be admin, app or user; got {scope!r}")
    key, record, new = create(_open(store), scope, tenant, user)  # type: ignore[arg-type]
    of = f" of user {user}" if user is not None else ""
    console.print(
        f"{scope} key {record.key_id}{of} for {'the new ' if new else ''}tenant {tenant}; it is shown this once:",
        highlight=False,
        markup=False,
    )
    out.print(key, highlight=False, markup=False)


@keys_app.command("list")
def keys_list(
    tenant: Annotated[str | None, typer.Option(help="Of one tenant alone.")] = None, store: StoreUrl = STORE
) -> None:
    """List keys, one JSON object a line."""
    _need_serving()
    from popi.serving.store import keys

    for record in _open(store).read(keys.listed, tenant):
        revoked = None if record.revoked_at is None else _moment(record.revoked_at)
        row = {"key_id": record.key_id, "scope": record.scope, "tenant": record.tenant, "user_id": record.user_id}
        print(json.dumps(row | {"created_at": _moment(record.created_at), "revoked_at": revoked}, ensure_ascii=False))


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `popi keys list` shows it.")],
    store: StoreUrl = STORE,
) -> None:
    """Revoke a key: gateways that run refuse it within a second or two.

    The line on stderr is for `popi replay`, as that of the gateway's log: keep it with the log."""
    _need_serving()
    from popi.serving.keys import log_revoked
    from popi.serving.proxy.logs import on_stderr
    from popi.serving.store import keys

    database = _open(store)
    record = database.write(lambda connection: keys.revoke(connection, key_id, database.now(connection)))
    with on_stderr():
        log_revoked(record)
    console.print(f"{record.scope} key {key_id} is revoked", highlight=False, markup=False)


# -- users ----------------------------------------------------------------------------------------------------------


@users_app.command("list")
def users_list(tenant: Tenant = "default", store: StoreUrl = STORE) -> None:
    """List a tenant's user ids, one a line (as JSON strings)."""
    _need_serving()
    database = _open_as_operator(store)
    _saw(database, "list", tenant)
    for user_id in _user_ids(database, tenant):
        print(json.dumps(user_id, ensure_ascii=False))


@users_app.command("show")
def users_show(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Show a user: their signals and every version of their summary, as JSON."""
    _need_serving()
    from popi.serving.api.stored import NotFound, exported

    database = _open_as_operator(store)
    _saw(database, "read", tenant, [normal_user_id(user_id)])
    try:
        for piece in exported(database.read, tenant, normal_user_id(user_id)):
            print(piece, end="")
    except NotFound:
        raise _no_user(user_id, tenant) from None
    print()


@users_app.command("export")
def users_export(
    user_ids: Annotated[list[str] | None, typer.Argument(help="The users; by default all of the tenant.")] = None,
    tenant: Tenant = "default",
    output: Annotated[Path | None, typer.Option("--out", help="File to write; stdout by default.")] = None,
    targets: Annotated[
        int, typer.Option(min=0, help="Most pairs of a user to hold out as targets; 0 holds out none.")
    ] = 4,
    force: Force = False,
    store: StoreUrl = STORE,
) -> None:
    """Write users as the JSONL that `popi train` reads. Users without a pair to hold out are left out, and those who
    do not want to be learned from; both are counted."""
    _need_serving()
    from popi.data.jsonl import refuse_existing, write_rows
    from popi.serving.api.stored import NotFound, OverBound, training_line

    if output is not None:
        refuse_existing(output, force)
    database = _open_as_operator(store)
    skipped = unwilling = 0

    def rows() -> Any:
        nonlocal skipped, unwilling
        named = map(normal_user_id, user_ids) if user_ids else _user_ids(database, tenant)
        for user_id in _each_noted(database, "export", tenant, named):
            try:
                user = database.read(training_line, tenant, user_id, targets)
            except NotFound:
                if user_ids:
                    raise _no_user(user_id, tenant) from None
                continue  # erased meanwhile
            except OverBound:
                unwilling += 1
                continue
            if not user.signals or (targets and not user.targets):
                skipped += 1
            else:
                yield user.model_dump(exclude_none=True)

    if output is not None:
        write_rows(output, rows(), force=force)
    else:
        for row in rows():
            print(json.dumps(row, ensure_ascii=False))
    if skipped:
        console.print(f"{skipped} users are left out: no pair to hold out as a target", highlight=False)
    if unwilling:
        console.print(f"{unwilling} users are left out: they do not want to be learned from", highlight=False)


@users_app.command("controls")
def users_controls(
    user_id: Annotated[str, typer.Argument(help="The user; nothing need be known of them yet.")],
    tenant: Tenant = "default",
    use: Annotated[bool | None, typer.Option("--use/--no-use", help="Use what is known of them.")] = None,
    learn: Annotated[bool | None, typer.Option("--learn/--no-learn", help="Learn from what they do.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Set a user's two switches, or show them. Gateways that run take notice within a few seconds.

    The line on stderr is for `popi replay`, as that of the gateway's log: keep it with the log."""
    _need_serving()
    from popi.serving.api.commands import switch_now
    from popi.serving.proxy.logs import on_stderr
    from popi.serving.store import controls, keys

    database, user_id = _open_as_operator(store), normal_user_id(user_id)
    if not database.read(keys.tenant_exists, tenant):
        raise DataError(f"there is no tenant {tenant!r}; `popi keys create` makes one")
    if use is None and learn is None:
        _saw(database, "read", tenant, [user_id])
        found = database.read(controls.find, tenant, user_id)
    else:
        with on_stderr():
            found = switch_now(database, tenant, user_id, use, learn)
    print(json.dumps({"use": found.use, "learn": found.learn}))


@users_app.command("delete")
def users_delete(
    user_id: Annotated[str, typer.Argument(help="The user.")],
    tenant: Tenant = "default",
    signal_id: Annotated[
        str | None, typer.Option("--signal", help="A signal, with what was learned from it.", metavar="ID")
    ] = None,
    clause: Annotated[str | None, typer.Option(help="A statement, in every version.", metavar="ID")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="A version of the summary.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Delete a part of what is stored of a user: a signal, a statement or a version; prints what went."""
    _need_serving()
    from popi.serving.api.commands import delete_now
    from popi.serving.api.stored import NotFound

    if sum(one is not None for one in (signal_id, clause, version)) != 1:
        raise typer.BadParameter("say what: --signal, --clause or --version, one of the three")
    try:
        done = delete_now(_open_as_operator(store), tenant, user_id, signal=signal_id, clause=clause, version=version)
    except NotFound as error:
        raise DataError(str(error)) from None
    print(done.model_dump_json(indent=2))


@users_app.command("rebuild")
def users_rebuild(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Have a user's summary written anew from all signals; a worker does it. Locked clauses stay."""
    _need_serving()
    from popi.serving.api.commands import rebuild
    from popi.serving.api.stored import NotFound

    database = _open_as_operator(store)
    try:
        database.write(rebuild, tenant, normal_user_id(user_id), database.now)
    except NotFound:
        raise _no_user(user_id, tenant) from None
    console.print(f"the summary of {user_id!r} will be written anew", highlight=False, markup=False)


@users_app.command("renew")
def users_renew(
    failed: Annotated[bool, typer.Option("--failed", help="Those whose renewals were given up.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Of one tenant alone; by default of all.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Have summaries renewed that are behind; a worker does it. For one user: `popi users rebuild`."""
    _need_serving()
    from popi.serving.store import jobs

    if not failed:
        raise typer.BadParameter("say whose: --failed, those whose renewals were given up")
    database = _open_as_operator(store)
    revived = database.write(lambda connection: jobs.revive(connection, database.now(connection), tenant))
    console.print(f"{revived} renewals begin anew", highlight=False)


@users_app.command("merge")
def users_merge(
    source: Annotated[str, typer.Argument(help="The user who becomes part of the other, and is gone.")],
    into: Annotated[str, typer.Option(help="The user who stays; made if need be.")],
    tenant: Tenant = "default",
    store: StoreUrl = STORE,
) -> None:
    """Make one user part of another: signals, summaries, keys (docs/serving.md). There is no way back.

    Gateways that run notice within a few seconds. The line on stderr is for `popi replay`: keep it with the log."""
    _need_serving()
    from popi.serving.api.commands import merge_now
    from popi.serving.api.stored import NotFound
    from popi.serving.proxy.logs import on_stderr

    try:
        with on_stderr():
            moved = merge_now(_open_as_operator(store), tenant, normal_user_id(into), normal_user_id(source))
    except NotFound:
        raise _no_user(source, tenant) from None
    print(json.dumps(moved.__dict__))


@users_app.command("erase")
def users_erase(
    user_id: Annotated[str, typer.Argument(help="The user.")], tenant: Tenant = "default", store: StoreUrl = STORE
) -> None:
    """Erase a user, and print the receipt. Gateways that run forget them within a few seconds.

    The line on stderr is for `popi replay`, as that of the gateway's log: keep it with the log."""
    _need_serving()
    from popi.serving.api.commands import erase_now
    from popi.serving.proxy.logs import on_stderr

    with on_stderr():
        receipt = erase_now(_open_as_operator(store), tenant, normal_user_id(user_id))
    print(receipt.model_dump_json(indent=2))


@app.command()
def replay(
    logs: Annotated[
        list[Path], typer.Argument(help="Logs of the gateways, and lines that commands printed; - is stdin.")
    ],
    since: Annotated[
        str, typer.Option(help="When the backup was begun, or earlier: 2026-11-30T03:00:00Z.", metavar="TIME")
    ],
    store: StoreUrl = STORE,
) -> None:
    """After a backup was restored: erase, merge, switch off and revoke again what the logs say was since the backup.

    Run it before gateways and workers start (docs/deploying.md). It prints what was done; a second run does nothing.
    """
    _need_serving()
    from popi.serving.replay import Line, read_lines
    from popi.serving.replay import replay as replayed

    try:
        begun = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter(f"--since is a time like 2026-11-30T03:00:00Z; got {since!r}") from None
    if begun.tzinfo is None:
        raise typer.BadParameter(f"--since needs its zone: {since}Z, or {since}+01:00")
    lines: list[Line] = []
    for log in logs:
        with sys.stdin if str(log) == "-" else log.open(encoding="utf-8") as text:
            lines += read_lines(text, begun.timestamp(), str(log))
    print(json.dumps(replayed(_open(store), lines).__dict__, indent=2))


@app.command("audit")
def audit_list(
    tenant: Annotated[str | None, typer.Option(help="Of one tenant alone.")] = None,
    user: Annotated[str | None, typer.Option(help="Of one user of that tenant, also one who was erased.")] = None,
    store: StoreUrl = STORE,
) -> None:
    """Print the audit log: who read or changed whom, newest first, one JSON object a line."""
    _need_serving()
    from popi.serving.api.access import audit_entry
    from popi.serving.store import audit

    if user is not None and tenant is None:
        raise typer.BadParameter("--user needs --tenant")
    for rows in audit.pages(_open(store).read, tenant, None if user is None else normal_user_id(user)):
        for row in rows:
            print(audit_entry(row).model_dump_json())


# -- shared ---------------------------------------------------------------------------------------------------------


def _need_serving() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("sqlalchemy", "fastapi", "uvicorn", "httptools")):
        raise ModelError("this command needs the gateway's packages; install them with: pip install 'popi[serve]'")


def _open(store: str) -> "Database":
    from popi.serving.store.database import Database

    return Database.open(store)


def _open_as_operator(store: str) -> "Database":
    """The same; what is read or changed from here on is noted in the audit log, under the account of this machine."""
    import getpass

    from popi.serving.store.audit import ACTOR, Actor

    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # in a container, an account may have no name
        account = str(os.getuid())
    ACTOR.set(Actor(f"cli:{account}", "operator", "cli"))
    return _open(store)


def _saw(database: "Database", action: str, tenant: str, user_ids: Sequence[str] = ("",)) -> None:
    """Note what is about to be read."""
    from popi.serving.store.audit import ACTOR, Seen, note_seen

    actor = ACTOR.get()
    assert actor is not None, "opened by _open_as_operator"
    seen = [Seen(actor, action, tenant, one) for one in user_ids]
    database.write(lambda connection: note_seen(connection, database.now(connection), seen))


def _each_noted(database: "Database", action: str, tenant: str, user_ids: Iterable[str]) -> Iterator[str]:
    """Users one after another, each noted before."""
    left = iter(user_ids)
    while some := list(islice(left, 500)):
        _saw(database, action, tenant, some)
        yield from some


def _key(variable: str | None) -> Any:
    if variable is None:
        return None
    from pydantic import SecretStr

    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the key for the upstream should be in the environment variable {variable}; it is not set")
    return SecretStr(key)


def _inference(
    settings: Path | None,
    url: str | None,
    model: str | None,
    protocol: str | None,
    key_env: str | None,
    threads: int | None = None,
) -> "InferenceSettings":
    from popi.serving.worker.inference import read

    found = read(settings, url=url, model=model, protocol=protocol, key_env=key_env, threads=threads)
    if found.url is not None and found.model is None:
        raise typer.BadParameter("--inference-url needs --inference-model: the model, as the API calls it")
    return found


def _api_worker(database: "Database", settings: Path | None, inference: "InferenceSettings") -> "Worker":
    from popi.models.remote.retries import Retries
    from popi.serving.settings import of_worker
    from popi.serving.worker.inference import Provider
    from popi.serving.worker.provenance import explainer
    from popi.serving.worker.renewal import Worker
    from popi.serving.worker.restating import restating

    given = of_worker(settings)
    model = inference.connect(retries=Retries(1), http=given.http)  # the worker tries again
    return Worker(
        database,
        model,
        given.renewal,
        inference.threads,
        explains=explainer(model),
        keep=given.profiles.keep,
        provider=Provider(model),
        check=inference.check,
        restates=restating(model),
    )


def _local_worker(
    database: "Database", settings: Path | None, run: Path | None, method: str | None, model: str | None
) -> "Worker":
    need_training()
    from popi.inference_model import InferenceModel
    from popi.serving.settings import of_worker
    from popi.serving.worker.provenance import explainer
    from popi.serving.worker.renewal import Worker
    from popi.serving.worker.restating import restating

    given = of_worker(settings)
    if run is None:
        loaded = InferenceModel.from_pretrained(str(model))
    else:
        from popi.runs.run_directory import RunDirectory

        opened = RunDirectory.open(run)
        loaded = InferenceModel.from_pretrained(opened.models(method)[0], **loading(opened.config))
    explains, restates = explainer(loaded), restating(loaded)
    return Worker(database, loaded, given.renewal, explains=explains, keep=given.profiles.keep, restates=restates)


def _deliverer(database: "Database", settings: Path | None) -> "Deliverer | None":
    from popi.serving.settings import of_worker
    from popi.serving.webhooks import Deliverer

    given = of_worker(settings)
    return Deliverer(database, given.webhooks, given.http) if given.webhooks else None


def _user_ids(database: "Database", tenant: str) -> Any:
    from popi.serving.store import users

    after = None
    while page := database.read(users.listed, tenant, after):
        yield from page
        after = page[-1]


def _no_user(user_id: str, tenant: str) -> DataError:
    return DataError(f"tenant {tenant!r} has no user {user_id!r}; `popi users list` shows those that it has")


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

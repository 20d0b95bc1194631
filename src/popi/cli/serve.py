"""Commands that start servers: serve, worker, mcp. The gateway is imported only when a command runs."""

import importlib.util
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from popi.cli.shared import Method, console, need_training
from popi.cli.store import STORE, StoreUrl, need_serving, open_store
from popi.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from popi.serving.store.database import Database
    from popi.serving.webhooks import Deliverer
    from popi.serving.worker.inference import InferenceSettings
    from popi.serving.worker.renewal import Worker

UPSTREAM, INFERENCE = "Upstream", "Inference model"
"""Help panels."""
Settings = Annotated[Path | None, typer.Option("--config", help="TOML file of settings (docs/gateway_settings.md).")]
InferenceUrl = Annotated[
    str | None,
    typer.Option(
        "--inference-url",
        help="URL of the model API that writes summaries, such as https://host/v1.",
        metavar="URL",
        rich_help_panel=INFERENCE,
    ),
]
InferenceModelName = Annotated[
    str | None, typer.Option(help="The model's name at that API.", metavar="NAME", rich_help_panel=INFERENCE)
]
InferenceProtocol = Annotated[
    str | None, typer.Option(help="Its protocol: openai (default) or anthropic.", rich_help_panel=INFERENCE)
]
InferenceKeyEnv = Annotated[
    str | None,
    typer.Option(help="Environment variable that holds its key.", metavar="VARIABLE", rich_help_panel=INFERENCE),
]


def serve(
    upstream: Annotated[
        str | None,
        typer.Option(
            help="URL of the model API behind the gateway, such as https://host/v1 (docs/serving.md).",
            metavar="URL",
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 listens on all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.", metavar="N")
    ] = 8600,
    store: StoreUrl = STORE,
    upstream_key_env: Annotated[
        str | None,
        typer.Option(
            help="Environment variable that holds the gateway's own key for the upstream.",
            metavar="VARIABLE",
            rich_help_panel=UPSTREAM,
        ),
    ] = None,
    settings: Settings = None,
    inference_url: InferenceUrl = None,
    inference_model: InferenceModelName = None,
    inference_protocol: InferenceProtocol = None,
    inference_key_env: InferenceKeyEnv = None,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Whether to renew summaries in this process.")
    ] = True,
    demo: Annotated[
        bool, typer.Option("--demo", help="Try it offline, with the nano model as upstream and inference model.")
    ] = False,
) -> None:
    """Start the gateway, which personalises any OpenAI or Anthropic client with its users' summaries."""
    need_serving()
    from popi.serving.proxy.logs import to_stderr
    from popi.serving.server import run

    to_stderr()
    if demo:
        if upstream is not None or inference_url is not None:
            raise typer.BadParameter(
                "--demo has its own upstream and inference model; remove --upstream and --inference-url"
            )
        need_training()
        from popi.serving.demo import run_demo

        run_demo(host, port, None if store == STORE else store)
        return
    from popi.serving.settings import read

    loaded = read(settings, upstream=upstream, upstream_key=_key(upstream_key_env))
    database = open_store(store)
    inference = _inference(settings, inference_url, inference_model, inference_protocol, inference_key_env)
    renewer = None
    if inference.url is not None and worker:
        renewer = _api_worker(database, settings, inference)
    elif worker:
        console.print(
            "no inference model: signals are stored, but summaries are not renewed here; name a model with "
            "--inference-url and --inference-model, or start `popi worker`",
            highlight=False,
        )
    run(database, loaded, host, port, renewer)


def worker(
    store: StoreUrl = STORE,
    run: Annotated[Path | None, typer.Option("--run", help="Directory of a trained run that writes summaries.")] = None,
    method: Method = None,
    model: Annotated[
        str | None, typer.Option(help="Local model that writes summaries: `nano`, a folder, a GGUF file or a hub id.")
    ] = None,
    inference_url: InferenceUrl = None,
    inference_model: InferenceModelName = None,
    inference_protocol: InferenceProtocol = None,
    inference_key_env: InferenceKeyEnv = None,
    settings: Settings = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Parallel renewals. Default: 4 with --inference-url; otherwise always 1.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port that serves Prometheus metrics. Default: none.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of that port.")] = "127.0.0.1",
) -> None:
    """Renew stale summaries until stopped. Any number of workers can share a store."""
    need_serving()
    if sum(one is not None for one in (run, model, inference_url)) > 1:
        raise typer.BadParameter("name exactly one model to write summaries: --run, --model or --inference-url")
    local = run is not None or model is not None
    inference = _inference(settings, inference_url, inference_model, inference_protocol, inference_key_env, threads)
    if not local and inference.url is None:
        raise typer.BadParameter(
            "name exactly one model to write summaries: --run, --model or --inference-url (or [inference])"
        )
    if local and threads not in (None, 1):
        raise typer.BadParameter("--threads requires --inference-url; a local model writes one summary at a time")
    from popi.serving.proxy.logs import to_stderr

    to_stderr()
    database = open_store(store)
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
            raise ConfigError(f"can't listen on {metrics_host}:{metrics_port} ({error.strerror})") from None
    signal.signal(signal.SIGTERM, lambda *_: renewer.stop(0))
    renewer.start()
    if deliverer is not None:
        deliverer.start()
    console.print("renewing summaries; press Ctrl-C to stop", highlight=False)
    try:
        renewer.wait()
    finally:
        renewer.stop()
        if deliverer is not None:
            deliverer.stop()
        database.close()


def mcp(
    url: Annotated[str, typer.Option(help="URL of the gateway, such as http://localhost:8600.", metavar="URL")],
    user: Annotated[
        str | None,
        typer.Option(help="The user whose profile it serves. With --http, each request names the user in x-popi-user."),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the key, preferably a user key. Default: POPI_KEY."),
    ] = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve streamable HTTP instead of stdio; each request carries its own key.")
    ] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With --http: port to listen on.")] = 8601,
) -> None:
    """Start an MCP server whose tools read a user's summary, add a signal and propose an edit."""
    if any(importlib.util.find_spec(name) is None for name in ("mcp", "uvicorn", "starlette")):
        raise ModelError("this command needs the MCP SDK; install it with: pip install 'popi[mcp]'")
    from popi.client.mcp_server import run_http, run_stdio

    if http:
        if user is not None or key_env is not None:
            raise typer.BadParameter(
                "with --http, each request carries its key (Authorization: Bearer) and its user (x-popi-user); remove "
                "--user and --key-env"
            )
        console.print(f"MCP at http://{host}:{port}/mcp; press Ctrl-C to stop", highlight=False, markup=False)
        run_http(url, host, port)
        return
    if user is None:
        raise typer.BadParameter("name the user whose profile it serves with --user ID")
    run_stdio(url, key_env or "POPI_KEY", user)


def _key(variable: str | None) -> Any:
    if variable is None:
        return None
    from popi.models.remote.key import key_in

    return key_in(variable)


def _inference(
    settings: Path | None,
    url: str | None,
    model: str | None,
    protocol: str | None,
    key_env: str | None,
    threads: int | None = None,
) -> "InferenceSettings":
    from popi.serving.worker.inference import read

    inference = read(settings, url=url, model=model, protocol=protocol, key_env=key_env, threads=threads)
    if inference.url is not None and inference.model is None:
        raise typer.BadParameter("--inference-url needs --inference-model, the model's name at the API")
    return inference


def _api_worker(database: "Database", settings: Path | None, inference: "InferenceSettings") -> "Worker":
    from popi.models.remote.retries import Retries
    from popi.serving.settings import of_worker
    from popi.serving.worker.inference import Provider
    from popi.serving.worker.provenance import explainer_for
    from popi.serving.worker.renewal import Worker
    from popi.serving.worker.restating import restatement_check_for

    loaded = of_worker(settings)
    model = inference.connect(retries=Retries(1), http=loaded.http)  # the worker retries
    return Worker(
        database,
        model,
        loaded.renewal,
        inference.threads,
        explainer=explainer_for(model),
        keep=loaded.profiles.keep,
        provider=Provider(model),
        check=inference.check,
        restatement_check=restatement_check_for(model),
    )


def _local_worker(
    database: "Database", settings: Path | None, run: Path | None, method: str | None, model: str | None
) -> "Worker":
    need_training()
    from popi.inference_model import InferenceModel
    from popi.models.spec import ModelSpec
    from popi.serving.settings import of_worker
    from popi.serving.worker.provenance import explainer_for
    from popi.serving.worker.renewal import Worker
    from popi.serving.worker.restating import restatement_check_for

    worker_settings = of_worker(settings)
    if run is None:
        spec = ModelSpec(str(model))
    else:
        from popi.runs.run_directory import RunDirectory

        opened = RunDirectory.open(run)
        spec = ModelSpec.of(opened.config, opened.models(method)[0])
    inference_model = InferenceModel.from_spec(spec)
    return Worker(
        database,
        inference_model,
        worker_settings.renewal,
        explainer=explainer_for(inference_model),
        keep=worker_settings.profiles.keep,
        restatement_check=restatement_check_for(inference_model),
    )


def _deliverer(database: "Database", settings: Path | None) -> "Deliverer | None":
    from popi.serving.settings import of_worker
    from popi.serving.webhooks import Deliverer

    loaded = of_worker(settings)
    return Deliverer(database, loaded.webhooks, loaded.http) if loaded.webhooks else None

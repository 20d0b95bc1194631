"""Options shared by the commands that call a model API, and the model they describe."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from popi.models.remote.usage import Prices
    from popi.models.spec import ModelSpec

PANEL = "Model API"
"""The help panel of these options."""

Api = Annotated[
    str | None,
    typer.Option(
        "--api",
        help="Use a model API instead of a run, such as https://host/v1 (docs/api_models.md).",
        metavar="URL",
        rich_help_panel=PANEL,
    ),
]
ApiName = Annotated[
    str | None, typer.Option("--api-model", help="The model's name at the API.", metavar="NAME", rich_help_panel=PANEL)
]
KeyEnv = Annotated[
    str | None,
    typer.Option(
        help="Environment variable that holds the key. Default: OPENAI_API_KEY or ANTHROPIC_API_KEY, if set.",
        metavar="VARIABLE",
        rich_help_panel=PANEL,
    ),
]
Concurrency = Annotated[
    int, typer.Option(min=1, help="Maximum number of requests in flight.", metavar="N", rich_help_panel=PANEL)
]
Protocol = Annotated[str, typer.Option(help="The API's protocol: openai or anthropic.", rich_help_panel=PANEL)]
Extra = Annotated[
    str | None,
    typer.Option(
        "--api-extra",
        help="JSON object of fields to add to each request; null removes a field.",
        metavar="JSON",
        rich_help_panel=PANEL,
    ),
]
InputPrice = Annotated[
    float | None, typer.Option(help="Price per million input tokens, to report the cost.", rich_help_panel=PANEL)
]
OutputPrice = Annotated[float | None, typer.Option(help="Price per million output tokens.", rich_help_panel=PANEL)]


def only_with_api(*options: object) -> None:
    """Reject model API options when no API is named."""
    if any(value is not None for value in options):
        raise typer.BadParameter("--api-model, --key-env, --api-extra, --input-price and --output-price need --api")


def fields_of(extra: str | None) -> dict[str, Any]:
    """Parse an option that holds a JSON object."""
    try:
        fields = json.loads(extra or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"the extra request fields are not valid JSON ({error}); got {extra}") from None
    if not isinstance(fields, dict):
        raise typer.BadParameter(f"the extra request fields must be a JSON object; got {extra}")
    return fields


def api_spec(
    url: str,
    name: str | None,
    protocol: str,
    key_env: str | None,
    extra: str | None,
    concurrency: int,
    input_price: float | None = None,
    output_price: float | None = None,
) -> "ModelSpec":
    """The API model that a command's options describe."""
    if name is None:
        raise typer.BadParameter("--api needs --api-model, the model's name at the API")
    prices, fields = prices_of(input_price, output_price), fields_of(extra)
    from popi.models.spec import ModelSpec

    options: dict[str, Any] = {"key_env": key_env, "concurrency": concurrency, "prices": prices, "extra": fields}
    return ModelSpec(name, url=url, protocol=protocol, **options)


def prices_of(input_price: float | None, output_price: float | None) -> "Prices | None":
    """The prices set by the two options; `None` if neither is set."""
    if input_price is None and output_price is None:
        return None
    if input_price is None or output_price is None:
        raise typer.BadParameter("a cost needs both prices: --input-price and --output-price")
    from popi.models.remote.usage import Prices

    return Prices(input_price, output_price)

"""What commands share that call a model behind an API: their options, and the model that these name."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from popi.models.remote.api import ApiModel
    from popi.models.remote.usage import Prices

Api = Annotated[
    str | None,
    typer.Option(
        "--api", help="URL of a model API instead of a run: https://host/v1 (docs/api_models.md).", metavar="URL"
    ),
]
ApiName = Annotated[str | None, typer.Option("--api-model", help="The model, as the API calls it.")]
KeyEnv = Annotated[
    str | None,
    typer.Option(help="Environment variable with the key; by default OPENAI_API_KEY or ANTHROPIC_API_KEY, if set."),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Most requests to the API under way at once.")]
Protocol = Annotated[str, typer.Option(help="What the API speaks: openai or anthropic.")]
Extra = Annotated[
    str | None,
    typer.Option("--api-extra", help="JSON object of fields to put into each request; null takes a field out."),
]
PriceIn = Annotated[float | None, typer.Option(help="Price of a million input tokens, to reckon the cost.")]
PriceOut = Annotated[float | None, typer.Option(help="Price of a million output tokens.")]


def only_with_api(*given: object) -> None:
    """Refuse options of a model API where no API is named."""
    if any(value is not None for value in given):
        raise typer.BadParameter("--api-model, --key-env, --api-extra, --price-in and --price-out go with --api alone")


def fields_of(extra: str | None) -> dict[str, Any]:
    """The fields of an option that holds a JSON object."""
    try:
        fields = json.loads(extra or "{}")
    except ValueError as error:
        raise typer.BadParameter(f"the fields for each request are not JSON ({error}); got {extra}") from None
    if not isinstance(fields, dict):
        raise typer.BadParameter(f"the fields for each request must be a JSON object; got {extra}")
    return fields


def connect(
    url: str,
    name: str | None,
    protocol: str,
    key_env: str | None,
    extra: str | None,
    concurrency: int,
    price_in: float | None,
    price_out: float | None,
) -> "ApiModel":
    """The model that a command's options name."""
    if name is None:
        raise typer.BadParameter("--api needs --api-model: the model, as the API calls it")
    prices, fields = prices_of(price_in, price_out), fields_of(extra)
    from popi.models.remote.api import ApiModel

    return ApiModel.connect(url, name, protocol, key_env=key_env, concurrency=concurrency, prices=prices, extra=fields)


def prices_of(price_in: float | None, price_out: float | None) -> "Prices | None":
    """The prices that two options name: both or neither."""
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise typer.BadParameter("a cost needs both prices: --price-in and --price-out")
    from popi.models.remote.usage import Prices

    return Prices(price_in, price_out)

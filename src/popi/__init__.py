"""POPI: personalise an LLM through one short, readable text a user.

    user signals ──▶ inference model ──▶ preference summary ──▶ generator ──▶ response
                         ▲      (text: read it, edit it,           ▲
                         │       store it, hand it on)             │
                         └───── one objective on preference pairs ─┘

Only text crosses from the inference model to the generator. The names below are imported when they are
first used, so that ``import popi`` costs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popi.client import AsyncClient, Client
    from popi.config import RunConfig, load_config
    from popi.data.jsonl import read_users, write_users
    from popi.errors import (
        BatchError,
        ConfigError,
        DataError,
        GatewayError,
        ModelError,
        PopiError,
        RunError,
        UpstreamError,
    )
    from popi.generator import ApiGenerator, Generator
    from popi.inference_model import ApiInferenceModel, InferenceModel
    from popi.models.remote.api import ApiModel
    from popi.models.remote.usage import Prices
    from popi.models.remote.vllm import VllmScorer
    from popi.signals.render import Templates
    from popi.signals.types import (
        DemographicSignal,
        InteractionSignal,
        Message,
        PairSignal,
        PostSignal,
        Signal,
        StatementSignal,
        TargetPair,
        User,
    )
    from popi.summary import Summary

__version__ = "0.1.0"

_HOME = {
    "popi.client": ["AsyncClient", "Client"],
    "popi.inference_model": ["ApiInferenceModel", "InferenceModel"],
    "popi.generator": ["ApiGenerator", "Generator"],
    "popi.models.remote.api": ["ApiModel"],
    "popi.models.remote.usage": ["Prices"],
    "popi.models.remote.vllm": ["VllmScorer"],
    "popi.summary": ["Summary"],
    "popi.signals.types": [
        "DemographicSignal",
        "InteractionSignal",
        "Message",
        "PairSignal",
        "PostSignal",
        "Signal",
        "StatementSignal",
        "TargetPair",
        "User",
    ],
    "popi.data.jsonl": ["read_users", "write_users"],
    "popi.signals.render": ["Templates"],
    "popi.config": ["RunConfig", "load_config"],
    "popi.errors": [
        "BatchError",
        "ConfigError",
        "DataError",
        "GatewayError",
        "ModelError",
        "PopiError",
        "RunError",
        "UpstreamError",
    ],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ApiGenerator",
    "ApiInferenceModel",
    "ApiModel",
    "AsyncClient",
    "BatchError",
    "Client",
    "ConfigError",
    "DataError",
    "DemographicSignal",
    "GatewayError",
    "Generator",
    "InferenceModel",
    "InteractionSignal",
    "Message",
    "ModelError",
    "PairSignal",
    "PopiError",
    "PostSignal",
    "Prices",
    "RunConfig",
    "RunError",
    "Signal",
    "StatementSignal",
    "Summary",
    "TargetPair",
    "Templates",
    "UpstreamError",
    "User",
    "VllmScorer",
    "load_config",
    "read_users",
    "write_users",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'popi' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

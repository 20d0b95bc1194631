"""POPI: personalise any LLM with a short, readable summary of each user's preferences.

    user signals ──▶ inference model ──▶ preference summary ──▶ generator ──▶ response
                         ▲      (text: read it, edit it,           ▲
                         │       store it, hand it on)             │
                         └───── one objective on preference pairs ─┘

Only text crosses from the inference model to the generator. The names below are imported on first use, so
that ``import popi`` does not import torch.
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
    from popi.generator import Generator
    from popi.inference_model import InferenceModel
    from popi.models.remote.api import ApiModel
    from popi.models.remote.usage import Prices
    from popi.models.remote.vllm import VllmScorer
    from popi.models.spec import ModelSpec
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
    "popi.inference_model": ["InferenceModel"],
    "popi.generator": ["Generator"],
    "popi.models.remote.api": ["ApiModel"],
    "popi.models.remote.usage": ["Prices"],
    "popi.models.remote.vllm": ["VllmScorer"],
    "popi.models.spec": ["ModelSpec"],
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
    "ModelSpec",
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

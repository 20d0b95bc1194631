"""Every setting of a run, each documented once, under its field. Imports no torch.

    section        base class of all sections: strict, frozen, no unknown keys
    run            RunConfig: a complete run
    model, data (and benchmark), signals, summary, training (and phases), evaluation     one section each
    read           TOML or JSON files and overrides → RunConfig

A run is described by a TOML file plus dotted overrides (``training.inference.steps=10``); the resolved
config is saved with the run. `load_config` is the only entry point.
"""

from popi.config.benchmark import BENCHMARKS
from popi.config.data import DataConfig
from popi.config.evaluation import PerUserLoraConfig
from popi.config.model import ApiGeneratorConfig
from popi.config.phases import GeneratorPhaseConfig, InferencePhaseConfig
from popi.config.read import explain, load_config, read_tree, resolve
from popi.config.run import RunConfig, with_method
from popi.config.section import Filled, FolderName
from popi.config.training import Order

__all__ = [
    "BENCHMARKS",
    "ApiGeneratorConfig",
    "DataConfig",
    "Filled",
    "FolderName",
    "GeneratorPhaseConfig",
    "InferencePhaseConfig",
    "Order",
    "PerUserLoraConfig",
    "RunConfig",
    "explain",
    "load_config",
    "read_tree",
    "resolve",
    "with_method",
]

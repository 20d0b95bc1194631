"""The phases stand on the public methods of `transformers.Trainer`."""

import ast
from pathlib import Path

import pytest
from transformers import Trainer

import popi.training.phases
from popi.training.phases.generator import GeneratorTrainer
from popi.training.phases.inference import InferenceTrainer
from popi.training.phases.joint import JointTrainer
from popi.training.phases.user_embedding import UserEmbeddingTrainer


@pytest.mark.parametrize("kind", [GeneratorTrainer, InferenceTrainer, JointTrainer, UserEmbeddingTrainer])
def test_no_private_method_is_overridden(kind: type) -> None:
    own = [name for base in kind.__mro__[: kind.__mro__.index(Trainer)] for name in vars(base)]
    assert "compute_loss" in own
    assert [name for name in own if name.startswith("_") and not name.endswith("__") and hasattr(Trainer, name)] == []


def test_no_private_attribute_of_a_library_is_used() -> None:
    used, defined = set(), set()
    for file in Path(popi.training.phases.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                used.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                defined.add(node.name)
    assert used <= defined and "training_step" in defined

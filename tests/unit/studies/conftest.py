"""Studies are tested on the small models and runs of the evaluation's tests."""

from unit.evaluation.conftest import one_thread, run, tiny

__all__ = ["one_thread", "run", "tiny"]

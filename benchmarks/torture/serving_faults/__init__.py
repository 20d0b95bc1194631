"""Faults for the serving side, and what must hold after each: the parts of `benchmarks/torture/serving.py`."""

"""The parts of `benchmarks/step.py`: models and cases, the ways to compare, their processes, and the report."""

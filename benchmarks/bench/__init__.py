"""The parts of `benchmarks/step.py`: models and cases, the ways that are compared, their processes, and the report."""

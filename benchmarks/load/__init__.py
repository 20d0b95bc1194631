"""The parts of `benchmarks/gateway.py`: the upstream, the client with its two loads, the servers, and the report."""

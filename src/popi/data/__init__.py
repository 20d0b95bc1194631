"""Where users come from: JSONL, parquet, the published benchmarks; what is checked of them before anything runs."""

"""Load users from JSONL, parquet and the published benchmarks, and check them before anything runs."""

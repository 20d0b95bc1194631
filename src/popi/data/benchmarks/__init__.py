"""Load public datasets and generic preference data as users. Each benchmark is one file with a `VERSION`.

The entry point is `popi.data.benchmarks.registry.load`. A loader's users are determined by its version, its options and
the rows, and are the same on every machine. Any change to the users needs a new `VERSION`; a test pins their hashes.
"""

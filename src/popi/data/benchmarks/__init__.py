"""Public sets and generic preference data as users: one file a benchmark, each with the version of its users.

`popi.data.benchmarks.registry.load` is the way in. What a loader yields is fixed by its version, its options and
the rows: the same users on every machine. A change of what it yields changes its `VERSION`; a test pins a hash.
"""

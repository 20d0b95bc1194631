"""Summaries for a whole population: `popi infer --engine ray`. How to use it: docs/population.md.

An engine (Ray Data) distributes the work, retries what a dead worker had begun, and limits what is in flight. The rest
is here, and knows no engine: exactly one summary per user, whatever dies.

    layout.py      the files in the output folder, and the settings that a run depends on
    staging.py     reads input files and cuts them into shards of users
    repeats.py     finds users who appear twice, in any of the files
    shard.py       writes the summaries of one shard, and checks them
    run.py         all steps in order, resumable after each shard
    ray_engine.py  the engine; the only file that imports ray
"""

"""A grid: benchmarks × methods × generators from one TOML file, in one command that can be killed and called again.

settings.py     the file: every setting, documented under its field; imports no torch
benchmarks.py   a benchmark's run (trained first, if it is not there) and its held-out users
cells.py        one benchmark with one generator: which methods, which folder, scores and summaries
judged.py       judges of a cell
result.py       grid.json from the cells' files
show.py         the same as tables: terminal and Markdown
transfer.py     the plot of the transfer table
plan.py         `--dry-run`: what a grid would do, ask and cost
run.py          all of it
"""

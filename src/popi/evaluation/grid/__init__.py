"""A grid: benchmarks × methods × generators from one TOML file, in one command that can be interrupted and resumed.

settings.py     the TOML file: every setting, documented under its field; imports no torch
benchmarks.py   a benchmark's run (trained first if missing) and its held-out users
cells.py        one benchmark with one generator: methods, folder, scores and summaries
judged.py       the judges of a cell
result.py       grid.json from the cells' files
show.py         grid.json as tables for the terminal and Markdown
transfer.py     the plot of the transfer table
plan.py         `--dry-run`: a grid's work, API calls and cost
run.py          the whole grid
"""

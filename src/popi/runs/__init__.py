"""Run directories, their files and the stores of resumable rows."""

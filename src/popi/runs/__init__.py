"""Run directories, their files, and stores of resumable rows."""

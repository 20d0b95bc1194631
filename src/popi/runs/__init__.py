"""Run directories, their files, and rows that can be resumed; used by training and evaluation."""

"""Judges which of two responses suits a user better, in both orders, and computes win rates.

question.py       questions, verdicts and the interface of a judge
model.py          an LLM behind an API, given the user's persona or signals (pairwise.j2)
truth.py          the nano world's true preferences; no LLM
log_probs.py      a local model's log-probs
comparisons.py    every pair in both orders, each verdict saved as it arrives
responses.py      the methods' greedy responses to compare
alpaca_eval.py    export to and import from alpaca_eval
result.py         the figures of judge.json
run.py            the whole comparison for a run directory
"""

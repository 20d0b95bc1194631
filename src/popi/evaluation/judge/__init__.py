"""Which of two responses suits a user better: judges, both orders, win rates.

question.py       what a judge is asked and may say
model.py          an LLM behind an API, told the user's persona or signals (pairwise.j2)
truth.py          the nano world's truth: no LLM
log_probs.py      a local model's log-probs
comparisons.py    every pair in both orders, each verdict kept as it comes
responses.py      what is compared: both methods' greedy responses
alpaca_eval.py    export and import
result.py         the figures of judge.json
run.py            all of it, for a run directory
"""

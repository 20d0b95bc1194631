"""The pass-through: a request comes in, the user's summary is put in, the answer streams back untouched.

    request ─▶ headers ─▶ key ─▶ limits ─▶ body ─▶ identity ─▶ summary ─▶ splice ─▶ upstream ─▶ answer
                          401     429      413       403        50 ms      bytes                bytes

Whoever asks is checked first, and what can't be told is refused. From the summary on nothing may stand in the way of
an answer: a fault there leaves the request as it came, and a header says so. `gateway.py` is that line, step by step;
every other file is one step.
"""

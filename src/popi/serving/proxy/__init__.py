"""The pass-through proxy: insert the user's summary into each request and stream the response back unchanged.

    request ─▶ headers ─▶ key ─▶ limits ─▶ body ─▶ identity ─▶ summary ─▶ splice ─▶ upstream ─▶ answer
                          401     429      413       403        50 ms      bytes                bytes

Authentication and limits come first and fail closed. From the summary on, the proxy fails open: if the summary can't be
read, the request goes upstream unchanged and a response header says so. `gateway.py` runs these steps in order; every
other file is one step.
"""

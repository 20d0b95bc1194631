"""Start `popi` in milliseconds: fork a process that has imported it already.

As a script it reads one line of JSON per process to start, and answers with its id. Starting Python and importing popi
takes seconds of a core, which would be most of the time of two hundred kills.

A process can be given a wrong clock, by as many seconds as a file says. Only its time of day is wrong; monotonic time
is not, as on a machine whose clock is set. PostgreSQL would use its server's clock, so the store is given this one.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

true_time = time.time
PR_SET_PDEATHSIG = 1


def set_clock(file: Path) -> None:
    """Make this process's clock wrong by the seconds in a file, which may change."""
    from popi.serving.store.database import Database

    def wrong_time() -> float:
        try:
            return true_time() + float(file.read_text() or 0)
        except (OSError, ValueError):
            return true_time()

    defaults = Database.__init__.__kwdefaults__
    assert defaults is not None and "clock" in defaults
    time.time, defaults["clock"] = wrong_time, wrong_time


def run(arguments: list[str], log: str, clock: str | None) -> None:
    """Become `popi` with these arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":  # end with the process that forked it, whatever ends that
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(number, target)
    if clock is not None:
        set_clock(Path(clock))
    sys.argv = ["popi", *arguments]
    from popi.cli import main

    main()


def serve() -> None:
    import popi.cli.serve  # noqa: F401
    import popi.inference_model
    import popi.serving.server
    import popi.serving.webhooks
    import popi.serving.worker.renewal  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets those that end
    print("ready", flush=True)
    for line in sys.stdin:
        wanted: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                run(**wanted)
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
            finally:
                os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()

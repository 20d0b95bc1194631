"""Run a module as a script that exits when its parent does.

`python -m popi.serving.worker.tethered MODULE ARGUMENTS ...`

The parent holds the other end of its stdin and sends nothing. When that end closes, the parent is gone, even if it was
killed and could not clean up.
"""

import os
import runpy
import signal
import sys
import threading
import time

GRACE_SECONDS = 5.0
"""How long the script may take to exit after SIGTERM."""


def _watch() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(143)


def main() -> None:
    """Run the module while a thread watches the parent."""
    threading.Thread(target=_watch, name="popi-tether", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""Rewards that are no numbers, and a server of rewards that fails."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from popi.runs.files import read_jsonl
from training_faults.bench import RESUMED, UNBROKEN, Bench, Lost, Outcome, directory, stopped_clearly, succeeded, tail
from training_faults.launcher import TESTS, Patch, free_port


def bad_score(value: float, call: int) -> Patch:
    """The generator's log-probs have a value that is no number, from a call of the reward on."""

    def patch() -> None:
        from popi.generator import Generator
        from popi.training.reward import SummaryReward

        real, logps, calls = SummaryReward.score, Generator.pair_logps, [0, False]

        def score(self: Any, *arguments: Any) -> Any:
            calls[0] += 1
            calls[1] = calls[0] >= call
            return real(self, *arguments)

        def pair_logps(self: Any, *arguments: Any, **named: Any) -> Any:
            chosen, rejected = logps(self, *arguments, **named)
            if calls[1]:
                chosen[len(chosen) // 2] = value
                calls[1] = False
            return chosen, rejected

        SummaryReward.score = score  # type: ignore[assignment,method-assign]
        Generator.pair_logps = pair_logps  # type: ignore[method-assign]

    return patch


def play_reward(bench: Bench) -> Outcome:
    """A log-prob that is no number in the fourth reward or later; then the run resumes without it."""
    _, expected = bench.whole()
    config = bench.config("broken")
    ended = bench.go(config, patch=bad_score(float(bench.case.fault), call=bench.random.randint(4, 6)))
    stopped_clearly(ended, "step", "user", "prompt", "--resume")
    places = [next(line for line in ended.errors.splitlines() if "popi: " in line)]
    succeeded(bench.go(config), "resumed without the bad reward")
    bench.same(expected, config)
    return Outcome(bench.case, RESUMED, places=places)


class Server:
    """A model API in a forked process, which can be taken down and put up again on the same port."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.base, self.flag, self.port, self.pid = base, folder / "unavailable", free_port(), 0
        folder.mkdir(parents=True, exist_ok=True)

    def up(self) -> None:
        """Start it, or let it answer again."""
        self.flag.unlink(missing_ok=True)
        if self.pid:
            return
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve()
            finally:
                os._exit(1)

    def down(self, how: str) -> None:
        """Let it refuse connections (`refuses`), or answer 503 (`503`)."""
        if how == "503":
            self.flag.touch()
        elif self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def _serve(self) -> None:
        sys.path.append(str(TESTS))
        from fake_upstream import FakeUpstream, Handler, status
        from fake_upstream import Server as Http

        from popi.models.local.model import LocalModel

        flag = self.flag

        class Outage(list):  # type: ignore[type-arg]
            def __bool__(self) -> bool:
                return flag.exists()

            def pop(self, index: Any = -1) -> Any:
                return status(503)

        http = Http(("127.0.0.1", self.port), Handler)
        http.fake = FakeUpstream(url=f"http://127.0.0.1:{self.port}", faults=Outage())
        http.fake.local = LocalModel.load(self.base, device="cpu")
        http.serve_forever()


def play_server(bench: Bench) -> Outcome:
    """An outage after the second step. `fault` is `HOW SECONDS`; 0 seconds: until the run gives up."""
    how, seconds = bench.case.fault.split()
    server = Server(bench.folder / "server", bench.base)
    retries = 25 if float(seconds) > 60 else 9 if float(seconds) else 1
    bench.more = {"model": {"api_generator": {"url": f"http://127.0.0.1:{server.port}/v1", "name": "tiny"}}}
    bench.more["model"]["api_generator"]["retries"] = retries
    began = ended_at = 0.0
    try:
        server.up()
        _, expected = bench.whole()
        config = bench.config("broken")
        log = directory(config) / "log.jsonl"

        def watch() -> None:
            nonlocal began, ended_at
            if not began and len(read_jsonl(log)) >= 2:
                server.down(how)
                began = time.perf_counter()
            if began and not ended_at and float(seconds) and time.perf_counter() - began > float(seconds):
                server.up()
                ended_at = time.perf_counter()

        ended = bench.go(config, watch=watch)
        if not began:
            raise Lost(f"the outage never began: {tail(ended.errors)}")
        if float(seconds):
            succeeded(ended, f"through an outage of {seconds} s")
            if not ended_at:
                raise Lost("it ended before the outage did")
        else:
            stopped_clearly(ended, f"127.0.0.1:{server.port}", "--resume")
            server.up()
            succeeded(bench.go(config), "resumed once the server was back")
        bench.same(expected, config)
        return Outcome(bench.case, UNBROKEN if float(seconds) else RESUMED)
    finally:
        server.down("refuses")

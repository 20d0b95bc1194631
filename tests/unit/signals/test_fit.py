"""What fits a token budget, and at what cost that is found."""

import time

import pytest

from popi.signals.render import Templates
from popi.signals.types import PairSignal, StatementSignal

pytestmark = pytest.mark.timed


def test_a_signal_of_megabytes_is_dropped_before_anything_reads_it() -> None:
    """10 MB took 46 s and 2.5 GB: rendered, tokenised and compared, to be dropped."""

    def count(text: str) -> int:
        assert len(text) < 10_000
        return len(text.split())

    huge = "word " * 2_000_000
    signals = [StatementSignal(text="short answers"), StatementSignal(text=huge, id="big")]
    signals += [PairSignal(prompt=[{"role": "user", "content": huge}], chosen="a", rejected="b")]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "search", "arguments": {"for": huge}}}]}
    turns = [{"role": "user", "content": "find it"}, call, {"role": "tool", "content": "none"}]
    signals += [PairSignal(prompt=turns, chosen="a", rejected="b")]
    templates = Templates.load("default")
    started = time.perf_counter()
    kept, dropped = templates.fit(signals, 200, count)
    assert kept == signals[:1] and dropped == ("big", "#3", "#4")
    assert templates.any_fits(signals, 200, count) and not templates.any_fits(signals[1:], 200, count)
    assert time.perf_counter() - started < 1

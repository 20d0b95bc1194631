"""Exactly one summary per user, with an engine of one process whose workers die on demand."""

import gzip
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from popi.errors import DataError, PopiError, RunError, UpstreamError
from popi.inference_model import InferenceModel
from popi.models.backend import Backend, Reply

pytest.importorskip("numpy")

from popi.population import shard as shard_module
from popi.population.layout import Folder
from popi.population.run import Order, Totals, rejects_of, summarize_population

Row = dict[str, Any]


class Killed(BaseException):
    """A worker or the driver dies."""


class Echo(Backend):
    """A model that answers with what it read; some users' words make it fail or die."""

    name = "echo"
    prompted = False

    def __init__(self, failing: Callable[[str], PopiError | None] = lambda text: None) -> None:
        self.failing, self.asked = failing, list[str]()

    def chat_many(self, conversations: Any, **settings: Any) -> list[Reply | PopiError]:
        results: list[Reply | PopiError] = []
        for index, messages in enumerate(conversations):
            text = messages[-1]["content"]
            self.asked.append(text)
            results.append(self.failing(text) or Reply("likes " + re.findall(r"i like (\w+)", text)[0]))
            settings["on_result"](index, results[-1])
        return results


class OneProcess:
    """An engine that repeats what a dead worker had begun, and delivers results in reverse."""

    def each(self, work: Callable[[Any], Iterable[Row]], items: Sequence[Any]) -> Iterator[Row]:
        for item in reversed(list(items)):
            yield from list(work(item))

    def each_with_writer(self, make: Callable[[], Callable[[str], Row]], items: Sequence[str]) -> Iterator[Row]:
        write, waiting = make(), list(items)
        while waiting:
            try:
                receipt = write(waiting[-1])
            except Killed:
                write = make()
                continue
            waiting.pop()
            yield receipt


def user(name: Any, likes: str = "tea") -> str:
    return json.dumps({"user_id": str(name), "signals": [{"type": "statement", "text": f"i like {likes}"}]})


def write_input(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    opened: Any = gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w")
    with opened as file:
        file.writelines(line + "\n" for line in lines)
    return path


def order_of(tmp_path: Path, model: Backend | None = None, **options: Any) -> Order:
    return Order(
        tmp_path / "users", tmp_path / "out", {"model": "echo"}, partial(InferenceModel, model or Echo()), **options
    )


def summaries(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for file in sorted(out.glob("part-*.jsonl")) for line in file.read_text().splitlines()]
    assert len({row["user_id"] for row in rows}) == len(rows), "a user has several summaries"
    return {row["user_id"]: row["summary"] for row in rows}


def rejects(out: Path) -> list[Row]:
    return [json.loads(line) for line in rejects_of(out).read_text().splitlines()]


def test_one_summary_per_user_and_a_reason_for_every_other_line(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(n, f"food{n}") for n in range(25)] + ["nonsense", user(3, "new")])
    write_input(
        tmp_path / "users" / "b.jsonl.gz", ["", user(24, "new"), user("last"), '{"user_id": "x", "signals": 5}']
    )
    totals = summarize_population(order_of(tmp_path, shard_users=10), OneProcess)
    assert (totals.lines, totals.written, totals.rejected, totals.retryable) == (30, 26, 4, 0)
    assert summaries(tmp_path / "out") == {str(n): f"likes food{n}" for n in range(25)} | {"last": "likes tea"}
    a, b = (str(tmp_path / "users" / name) for name in ("a.jsonl", "b.jsonl.gz"))
    assert [(row["file"], row["line"], row["field"], row.get("user_id")) for row in rejects(tmp_path / "out")] == [
        (a, 26, "", None),
        (a, 27, "user_id", "3"),
        (b, 2, "user_id", "24"),
        (b, 4, "signals", None),
    ]
    assert f"'24' already appears on line 25 of {a}" in rejects(tmp_path / "out")[2]["error"]
    assert "got 5" in rejects(tmp_path / "out")[3]["error"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "_popi.json",
        *(f"part-{n}.jsonl" for n in ("00000-000000", "00000-000001", "00000-000002", "00001-000000")),
    ]


def test_parquet_in_and_out(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    table = pytest.importorskip("pyarrow").Table.from_pylist([json.loads(user(n, f"food{n}")) for n in range(7)])
    (tmp_path / "users").mkdir()
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "users" / "u.parquet")
    totals = summarize_population(order_of(tmp_path, form="parquet", shard_users=3), OneProcess)
    assert (totals.written, totals.rejected) == (7, 0)
    rows = dataset.dataset(tmp_path / "out").to_table().to_pylist()  # skips our own files
    assert {row["user_id"]: row["summary"] for row in rows} == {str(n): f"likes food{n}" for n in range(7)}
    assert rows[0]["model"] == "echo" and rows[0]["abstained"] is False and rows[0]["removed_content"] is None


def test_workers_that_die_anywhere_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third step of writing a shard kills the worker: before, between and after its files are renamed."""
    write_input(tmp_path / "users" / "a.jsonl", [user(n, f"food{n}") for n in range(60)] + [user(5), "bad"])
    steps = 0

    def deadly(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps % 3 == 0 and not after:
                raise Killed
            result = function(*args)
            if steps % 5 == 0 and after:
                raise Killed
            return result

        return call

    for name, after in (("_write_part", True), ("_write_lines", False), ("write_json", True), ("_sorted_out", False)):
        monkeypatch.setattr(shard_module, name, deadly(getattr(shard_module, name), after))
    totals = summarize_population(order_of(tmp_path, shard_users=7), OneProcess)
    assert (totals.lines, totals.written, totals.rejected) == (62, 60, 2) and totals.restarted > 3
    assert summaries(tmp_path / "out") == {str(n): f"likes food{n}" for n in range(60)}


@pytest.mark.parametrize("last_step", range(1, 18))
def test_a_dead_driver_is_resumed(tmp_path: Path, last_step: int) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(n, f"food{n}") for n in range(20)] + [user(1)])
    reported = 0

    def die(description: str, done: int, total: int | None) -> None:
        nonlocal reported
        reported += 1
        if reported == last_step:
            raise Killed

    order = order_of(tmp_path, shard_users=5)
    with pytest.raises(Killed):
        summarize_population(order, OneProcess, die)
    with pytest.raises(DataError, match="--resume"):
        summarize_population(order, OneProcess)
    model = Echo()
    again = replace(order, resume=True, make=partial(InferenceModel, model))
    receipts = [json.loads(file.read_text()) for file in (tmp_path / "out" / ".popi" / "done").iterdir()]
    totals = summarize_population(again, OneProcess)
    assert (totals.lines, totals.written, totals.rejected) == (21, 20, 1)
    assert len(model.asked) == 20 - sum(receipt["written"] for receipt in receipts), (
        "a finished shard is not summarised again"
    )
    assert summaries(tmp_path / "out") == {str(n): f"likes food{n}" for n in range(20)}
    assert summarize_population(again, never) == Totals(lines=21, written=20, rejected=1)


def never() -> Any:
    raise AssertionError("nothing was left to do")


def test_users_whom_the_model_fails_are_retried_alone(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(n, f"food{n}") for n in range(10)] + ["bad"])
    refusal = Echo(lambda text: UpstreamError("refused", status=400) if "food4" in text else None)
    totals = summarize_population(order_of(tmp_path, refusal, shard_users=5), OneProcess)
    assert (totals.written, totals.rejected, totals.retryable) == (9, 2, 1)
    assert [(row.get("user_id"), row["retry"]) for row in rejects(tmp_path / "out")] == [("4", True), (None, False)]
    model = Echo()
    totals = summarize_population(order_of(tmp_path, model, shard_users=5, resume=True), OneProcess)
    assert (totals.written, totals.rejected, totals.retryable) == (10, 1, 0) and len(model.asked) == 1
    assert list(summaries(tmp_path / "out")) == [str(n) for n in range(10)]


def test_an_api_that_fails_for_everyone_stops_the_run(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(n) for n in range(50)])
    down = Echo(lambda text: UpstreamError("no route to host", transient=True))
    with pytest.raises(UpstreamError, match="no route to host(.|\n)*--resume"):
        summarize_population(order_of(tmp_path, down, shard_users=5), OneProcess)
    assert len(down.asked) == 15
    totals = summarize_population(order_of(tmp_path, shard_users=5, resume=True), OneProcess)
    assert (totals.written, totals.rejected) == (50, 0)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(1)])

    def make() -> InferenceModel:
        raise UpstreamError("no such model")

    with pytest.raises(RunError, match="no such model"):
        summarize_population(replace(order_of(tmp_path), make=make), OneProcess)


def test_users_who_kill_every_worker_are_named(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(n) for n in range(3)])

    def die(text: str) -> None:
        raise Killed

    with pytest.raises(RunError, match="20 workers died(.|\n)*--shard-users"):
        summarize_population(order_of(tmp_path, Echo(die)), OneProcess)


def test_an_older_start_writes_nothing(tmp_path: Path) -> None:
    """A worker that lost its driver, while another driver resumes."""
    write_input(tmp_path / "users" / "a.jsonl", [user(n) for n in range(3)])

    def start_again(text: str) -> None:
        Folder.of(tmp_path / "out", "jsonl").begin()

    with pytest.raises(RunError, match="another run has started"):
        summarize_population(order_of(tmp_path, Echo(start_again)), OneProcess)
    assert not list((tmp_path / "out").glob("*part-*")) and not list((tmp_path / "out/.popi/done").iterdir())


def test_other_settings_or_inputs_are_not_resumed(tmp_path: Path) -> None:
    path = write_input(tmp_path / "users" / "a.jsonl", [user(n) for n in range(3)])
    order = order_of(tmp_path, resume=True)
    summarize_population(order, OneProcess)
    with pytest.raises(RunError, match="shard_users: 1000 -> 5"):
        summarize_population(replace(order, shard_users=5), OneProcess)
    with pytest.raises(RunError, match="model: 'echo' -> 'other'"):
        summarize_population(replace(order, settings={"model": "other"}), OneProcess)
    time.sleep(0.01)
    write_input(path, [user(n) for n in range(4)])
    with pytest.raises(RunError, match=r"a\.jsonl: '\d+ bytes"):
        summarize_population(order, OneProcess)
    assert summarize_population(replace(order, resume=False, force=True), OneProcess).written == 4


def test_summaries_that_disappear_are_noticed(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(n) for n in range(6)])

    def lose(description: str, done: int, total: int | None) -> None:
        if description.startswith("users (") and done == total:
            part = next((tmp_path / "out").glob("part-*"))
            part.write_text(part.read_text().split("\n", 1)[1])

    with pytest.raises(RunError, match="1 summaries and 0 rejects do not match the 2 users"):
        summarize_population(order_of(tmp_path, shard_users=2), OneProcess, lose)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([json.dumps({"user_id": "a", "prompt": "p", "chosen": "c", "rejected": "r"})], "one user per line"),
        ([], "no users"),
    ],
)
def test_files_without_users_are_refused(tmp_path: Path, lines: list[str], words: str) -> None:
    write_input(tmp_path / "users" / "a.jsonl", lines)
    with pytest.raises(PopiError, match=words):
        summarize_population(order_of(tmp_path), OneProcess)


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    write_input(tmp_path / "users" / "a.jsonl", [user(1)])
    order = order_of(tmp_path, force=True)
    with pytest.raises(DataError, match="folder of the input"):
        summarize_population(replace(order, out=tmp_path / "users"), OneProcess)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(DataError, match="precious"):
        summarize_population(order, OneProcess)
    with pytest.raises(DataError, match="is a file"):
        summarize_population(replace(order, out=tmp_path / "out" / "precious"), OneProcess)
    with pytest.raises(DataError, match="no folder"):
        summarize_population(replace(order, out=tmp_path / "no" / "out"), OneProcess)
    with pytest.raises(DataError, match="nowhere"):
        summarize_population(replace(order, users=tmp_path / "nowhere.jsonl", out=tmp_path / "new"), OneProcess)

"""The benchmarks by the names used in settings and commands."""

from types import ModuleType

from popi.data.benchmarks import (
    alignx,
    amazon,
    elix,
    hicupid,
    lamp,
    mind,
    movielens,
    mtbench,
    persona,
    personamem,
    polis,
    preferences,
    prism,
    psoups,
    review,
    roleplay,
)
from popi.data.benchmarks.result import Loaded, Options, Split
from popi.data.jsonl import Problem, listing
from popi.errors import DataError

BENCHMARKS: dict[str, ModuleType] = {
    "elix": elix,
    "review": review,
    "roleplay": roleplay,
    "alignx": alignx,
    "polis": polis,
    "mtbench": mtbench,
    "preferences": preferences,
    "persona": persona,
    "movielens": movielens,
    "prism": prism,
    "personamem": personamem,
    "psoups": psoups,
    "lamp": lamp,
    "mind": mind,
    "amazon": amazon,
    "hicupid": hicupid,
}


def load(source: str, options: Options) -> Loaded:
    """Load a benchmark's users, with an account of every row. Problems are collected in `Loaded.problems`.

    Raises:
        DataError: if there is no such source, or the dataset can't be read at all.
    """
    if source not in BENCHMARKS:
        raise DataError(f"no benchmark {source!r}; choose from {', '.join(BENCHMARKS)}")
    loader = BENCHMARKS[source]
    place = options.path or getattr(loader, "HUB", None)
    if place is None:
        raise DataError(f"{source}: has no hub dataset; set benchmark.path to a file or folder")
    tests = {"test": Split("test", options.test_limit)}
    loaded = Loaded(source, loader.VERSION, Split("train", options.train_limit), tests, [])
    loader.load(options, loaded)
    for split in (loaded.train, loaded.others["test"]):
        if not split.windows and not split.bad and (split.rows or options.need_test):
            account = "; ".join(line.strip() for line in split.summary())
            need = f"a window needs {options.signals_per_user} signals and {options.targets_per_user} targets"
            loaded.problems.append(Problem(0, "nothing to use", "", f"no user in {account} ({need})", file=place))
    return loaded


def load_clean(source: str, options: Options) -> Loaded:
    """Like `load`, but refuse a dataset with problems.

    Raises:
        DataError: as for `load`, or if there are problems, which the message lists.
    """
    loaded = load(source, options)
    if loaded.problems:
        hint = '\n  set data.benchmark.on_bad_rows = "drop" to drop and count bad rows'
        bad = any(problem.kind == "bad row" for problem in loaded.problems)
        raise DataError(listing(f"{source}", loaded.problems) + (hint if bad else ""))
    return loaded

"""The benchmarks by the names that settings and commands know them by."""

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
    """Read a set to users, with an account of every row and all that is wrong; see `Loaded.problems`.

    Raises:
        DataError: there is no such source, or the set can't be read at all.
    """
    if source not in BENCHMARKS:
        raise DataError(f"no benchmark {source!r}; there are: {', '.join(BENCHMARKS)}")
    loader = BENCHMARKS[source]
    place = options.path or getattr(loader, "HUB", None)
    if place is None:
        raise DataError(f"{source}: has no set on the hub; name the file or folder that it lies in")
    tests = {"test": Split("test", options.test_limit)}
    loaded = Loaded(source, loader.VERSION, Split("train", options.train_limit), tests, [])
    loader.load(options, loaded)
    for split in (loaded.train, loaded.others["test"]):
        if not split.windows and not split.bad and (split.rows or options.need_test):
            told = "; ".join(line.strip() for line in split.told())
            need = f"a window takes {options.signals_per_user} signals and {options.targets_per_user} targets"
            loaded.problems.append(Problem(0, "nothing to use", "", f"no user in {told} ({need})", file=place))
    return loaded


def load_clean(source: str, options: Options) -> Loaded:
    """`load`, where nothing may be wrong.

    Raises:
        DataError: as `load`, or there are problems; the message is the list.
    """
    loaded = load(source, options)
    if loaded.problems:
        hint = '\n  drop bad rows, counted, with data.benchmark.on_bad_rows = "drop"'
        bad = any(problem.kind == "bad row" for problem in loaded.problems)
        raise DataError(listing(f"{source}", loaded.problems) + (hint if bad else ""))
    return loaded

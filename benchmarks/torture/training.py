"""Faults in training: each has to end in the right weights, or in a clear stop from which the run resumes to them.

    make torture PART=training                                         # all of it
    python benchmarks/torture/training.py [--quick] [--only GROUP …] [--kills N] [--seed N] [--jobs N] [--json FILE]

Groups:

    kill      SIGKILL of one process or of all, at random moments and at dangerous places (before a file operation, in a
              half-written file, before an evaluation, at a phase's end), in every order, with full weights and LoRA, in
              1, 2 and 4 processes; the run resumes until it is done. `changing` resumes in another number of processes.
    torchrun  the same with torchrun, killed with all that it started
    disk      a file system of a random size, smaller than the run needs (takes root)
    corrupt   a flipped bit, a file that was cut, emptied or removed, after a kill between two checkpoints
    reward    a log-prob of the generator that is NaN or infinite
    server    a generator behind an API that fails, for ten minutes or until the run gives up

Runs have a few thousand weights. Their weights, summaries and metrics have to equal those of an unbroken run bit by
bit; those of `changing`, which are float64, up to 1e-9. Exit status 1 if anything was lost; then its folder is kept.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from rich.console import Console
from rich.table import Table
from training_faults import kills as sigkill
from training_faults import launcher
from training_faults.bench import LOST, Bench, Case, Lost, Outcome
from training_faults.cases import Shape, settings, shapes, tiny_base, write_config
from training_faults.files import can_mount, play_corrupt, play_disk
from training_faults.rewards import play_reward, play_server

CONSOLE = Console()
GROUPS: dict[str, Callable[[Bench], Outcome]] = {
    "kill": sigkill.play_kill,
    "torchrun": sigkill.play_torchrun,
    "disk": play_disk,
    "corrupt": play_corrupt,
    "reward": play_reward,
    "server": play_server,
}
DAMAGES = ("flipped", "cut", "emptied", "removed")
WRITTEN = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "rng_state*.pth",
    "complete",
)
CHECKPOINTS = "phases/*/checkpoints/checkpoint-*"
"""Folders of checkpoints, with the files of WRITTEN."""


def kills(n: int, random: Random) -> list[Case]:
    """`n` kills over all orders, adapters and numbers of processes."""
    every = shapes([1, 2], random)
    more = [Shape(order, "lora", 4) for order in ("alternating", "simultaneous")]
    changing = [Shape(order, "lora", 1) for order in ("alternating", "simultaneous")]
    under = [Shape("alternating", "lora", 2)]
    special = [Case("kill", shape, "killed", random.randrange(10**6), 2) for shape in more]
    special += [Case("kill", shape, "changing", random.randrange(10**6), 3) for shape in changing]
    special += [Case("torchrun", shape, "killed", random.randrange(10**6), 2) for shape in under]
    left = n - sum(case.n for case in special)
    counts = [left // len(every) + (i < left % len(every)) for i in range(len(every))]
    return special + [Case("kill", s, "killed", random.randrange(10**6), c) for s, c in zip(every, counts, strict=True)]


def whole_plan(n: int, random: Random) -> list[Case]:
    """Every case."""
    plan = [Case("server", Shape("plug_and_play", "lora"), fault, 0) for fault in ("refuses 600", "503 600")]
    for how in ("refuses", "503"):
        plan += [Case("server", Shape("plug_and_play", "none", processes), f"{how} 0", 0) for processes in (1, 2)]
    plan += kills(n, random)
    full = [("alternating", "none", "plain"), ("simultaneous", "lora", "evaluations"), ("fspo", "lora", "chosen loss")]
    full += [("user_embedding_from_signals", "none", "plain"), ("plug_and_play", "none", "renewals")]
    plan += [Case("disk", Shape(o, a, 1, extra), "full", random.randrange(10**6), 3) for o, a, extra in full]
    plan += [Case("disk", Shape("alternating", "lora", 2), "full", random.randrange(10**6), 2)]
    for i, file in enumerate(WRITTEN):  # each in two ways
        for how in (DAMAGES[i % 4], DAMAGES[(i + 1) % 4]) if file != "complete" else ("flipped", "cut"):
            order, adapter = ("alternating", "simultaneous")[i % 2], ("none", "lora")[i // 2 % 2]
            fault = f"newest {CHECKPOINTS}/{file} {how}"
            plan.append(Case("corrupt", Shape(order, adapter), fault, random.randrange(10**6)))
    plan.append(Case("corrupt", Shape("fspo", "lora"), f"every {CHECKPOINTS}/model.safetensors cut", 0))
    weights = "phases/inference-1/inference_model/*.safetensors"
    others = [f"{weights} flipped", f"{weights} cut", "phases/inference-1/done.json emptied", "config.json cut"]
    others += [
        f"{rows}.jsonl cut" for rows in ("references", "log", "phases/*/samples", "phases/generator-1/summaries")
    ]
    plan += [Case("corrupt", Shape("alternating", "none"), fault, i) for i, fault in enumerate(others)]
    plan.append(Case("corrupt", Shape("alternating", "lora", 1, "renewals"), "phases/*/renewals.jsonl cut", 0))
    for i, (order, processes) in enumerate([("plug_and_play", 1), ("simultaneous", 1), ("alternating", 2)]):
        values = ("nan", "inf", "-inf")
        plan += [Case("reward", Shape(order, ("none", "lora")[i % 2], processes), value, i) for value in values]
    return plan


def quick_plan(random: Random) -> list[Case]:
    """One or two cases of each group."""
    plan = [Case("kill", Shape("alternating", "none", 1, "evaluations"), "killed", random.randrange(10**6), 3)]
    plan += [Case("kill", Shape("simultaneous", "lora", 2), "killed", random.randrange(10**6), 2)]
    plan += [Case("disk", Shape("plug_and_play", "lora"), "full", random.randrange(10**6), 3)]
    newest = f"newest {CHECKPOINTS}/model.safetensors flipped"
    plan += [Case("corrupt", Shape("fspo", "lora"), newest, random.randrange(10**6))]
    plan += [Case("reward", Shape("plug_and_play", "none"), "nan", 0)]
    return plan + [Case("server", Shape("plug_and_play", "none"), fault, 0) for fault in ("refuses 3", "503 0")]


def play(case: Case, folder: Path, base: Path) -> Outcome:
    """Play a case, and remove what it left unless something was lost."""
    began = time.perf_counter()
    if case.group == "disk" and not can_mount(folder / "probe"):
        return Outcome(case, "skipped", "mounting a small file system takes root", faults=0)
    bench = Bench(case, folder, base)
    try:
        outcome = GROUPS[case.group](bench)
    except Lost as loss:
        outcome = Outcome(case, LOST, str(loss))
    except Exception as error:
        outcome = Outcome(case, LOST, f"the harness failed: {error!r}")
    outcome.seconds = round(time.perf_counter() - began, 1)
    if outcome.result != LOST:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def table(outcomes: list[Outcome]) -> Table:
    """A row per group: how many cases and faults, and how they ended."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        groups[one.case.group].append(one)
    results = list(dict.fromkeys(one.result for one in outcomes if one.result != LOST)) + [LOST]
    shown = Table("group", "cases", "faults", *results, "minutes")
    for group in GROUPS:
        if own := groups.get(group):
            counts = [str(sum(one.result == name for one in own)) for name in results]
            minutes = f"{sum(one.seconds for one in own) / 60:.1f}"
            shown.add_row(group, str(len(own)), str(sum(one.faults for one in own)), *counts, minutes)
    return shown


def main() -> None:
    """Play the cases, show the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a case or two of each group: about a minute")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups to play")
    parser.add_argument("--match", default="", help="only cases with this text, such as a line of the output")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument(
        "--json", type=Path, default=Path("runs/torture/training.json"), help="where to write all cases"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the runs (default: a temporary one)")
    options = parser.parse_args()
    random = Random(options.seed)
    plan = quick_plan(random) if options.quick else whole_plan(options.kills, random)
    plan = [case for case in plan if case.group in options.only and options.match in str(case)]
    scratch = Path(options.scratch or tempfile.mkdtemp(prefix="popi-torture-"))
    base, began = scratch / "base", time.perf_counter()
    launcher.in_child(lambda: tiny_base(base))
    first = Shape("simultaneous", "lora")
    warm = launcher.warm_up(
        write_config(scratch / "warm", settings(first, base, scratch / "warm" / "root")), scratch / "warm"
    )
    if warm.code:
        sys.exit(f"an undisturbed run failed:\n{warm.errors}")
    outcomes: list[Outcome] = []
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        jobs = [pool.apply_async(play, (case, scratch / f"case-{i}", base)) for i, case in enumerate(plan)]
        waiting = dict(enumerate(jobs))
        while waiting:
            time.sleep(0.05)
            for i in [i for i, job in waiting.items() if job.ready()]:
                outcome = waiting.pop(i).get()
                outcomes.append(outcome)
                style = "red" if outcome.result == LOST else "green"
                line = f"[{len(outcomes)}/{len(plan)}] {outcome.case}: {outcome.result}, {outcome.seconds:.0f} s"
                CONSOLE.print(line, style=style, markup=False)
                if outcome.detail:
                    CONSOLE.print(f"    case-{i}: {outcome.detail}", markup=False, highlight=False)
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps([one.row() for one in outcomes], indent=1) + "\n")
    CONSOLE.print(table(outcomes))
    lost = [one for one in outcomes if one.result == LOST]
    CONSOLE.print(f"{(time.perf_counter() - began) / 60:.1f} minutes; every case: {options.json}")
    if lost:
        sys.exit(f"{len(lost)} of {len(plan)} cases lost something; their folders are in {scratch}")
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Trains the inference model every night on the data that the gateway collects: export, train, evaluate, deploy.

python examples/nightly/nightly.py --store sqlite:///popi.db --tenant shop --runs runs/nightly

    export    write the store's users as JSONL for `popi train`; a fifth of them, the same ones every night, are held
              out
    train     train a separate run each night, from the base model on all data
    evaluate  evaluate the new run and the deployed one on tonight's held-out users
    deploy    if the new run is better, point the link RUNS/current at it
    clear     delete the export, even after a failure, so that users erased from the gateway don't survive in it

Start the worker once with `popi worker --run runs/nightly/current`. It reads the run at startup, so pass the command
that restarts it as `--restart`. Run this script from cron; a failed night leaves the deployed run unchanged.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

METHOD = "popi_plug_and_play"
UNTRAINED = "untrained_summary"
HERE = Path(__file__).parent


def popi(*arguments: str | Path) -> None:
    """Run a popi command; its output goes to the log."""
    subprocess.run([sys.executable, "-m", "popi.cli", *map(str, arguments)], check=True)


def held_out(user_id: str, share: float) -> bool:
    """Whether to hold a user out of training. A hash decides, so that the answer is the same every night."""
    return int.from_bytes(sha256(user_id.encode()).digest()[:8]) / 2**64 < share


def split(exported: Path, train: Path, test: Path, share: float) -> tuple[int, int]:
    """Split an export into training and test users; returns the number of each."""
    counts = [0, 0]
    with exported.open(encoding="utf-8") as lines, train.open("w") as train_file, test.open("w") as test_file:
        for line in lines:
            out = held_out(json.loads(line)["user_id"], share)
            (test_file if out else train_file).write(line)
            counts[out] += 1
    return counts[0], counts[1]


def accuracy(metrics: Path, method: str) -> float:
    """A method's reward accuracy: share of held-out pairs whose preferred response the summary makes likelier."""
    return float(json.loads(metrics.read_text())["methods"][method]["reward_accuracy"]["value"])


def deployed_accuracy(current: Path, fresh: Path, test: Path) -> tuple[str, float]:
    """The deployed run and its accuracy tonight; before the first night, the untrained base."""
    if not current.exists():
        return "the untrained base", accuracy(fresh / "metrics.json", UNTRAINED)
    popi("evaluate", "--run", current.resolve(), "--users", test)
    metrics = current.resolve() / "evaluation" / f"on-{test.stem}" / "metrics.json"
    return current.resolve().name, accuracy(metrics, METHOD)


def deploy(run: Path, current: Path) -> None:
    """Point `current` at a run atomically: readers see either the old run or the new one."""
    link = current.with_name(f".{current.name}.{os.getpid()}")
    link.symlink_to(run.name)
    os.replace(link, current)


def main() -> None:
    """Run one night."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="sqlite:///popi.db", help="the gateway's store")
    parser.add_argument("--tenant", default="default", help="the users' tenant")
    parser.add_argument("--runs", type=Path, default=Path("runs/nightly"), help="parent folder of the nights' runs")
    parser.add_argument("--config", type=Path, default=HERE / "nightly.toml", help="training settings")
    parser.add_argument("--test-share", type=float, default=0.2, help="share of the users held out")
    parser.add_argument("--restart", default="", help="command that restarts the worker after a deployment")
    parser.add_argument("--keep-data", action="store_true", help="keep the export for inspection")
    parser.add_argument("overrides", nargs="*", help="settings: training.inference.steps=30 …")
    options = parser.parse_args()

    name = time.strftime("%Y-%m-%d-%H%M%S")
    data = options.runs / "data" / name
    data.mkdir(parents=True)
    try:
        better = night(options, name, data)
    finally:
        if not options.keep_data:
            shutil.rmtree(data)
    if better and options.restart:
        subprocess.run(shlex.split(options.restart), check=True)


def night(options: argparse.Namespace, name: str, data: Path) -> bool:
    """Export to `data`, train and evaluate the run `name`, and deploy it if it is better; returns whether it was."""
    # Evaluations are stored by the test file's name, so each night needs its own.
    exported, train, test = (data / f"{part}-{name}.jsonl" for part in ("users", "train", "test"))
    popi("users", "export", "--tenant", options.tenant, "--store", options.store, "--out", exported)
    trained_on, tested_on = split(exported, train, test, options.test_share)
    if not trained_on or not tested_on:
        sys.exit(f"{trained_on} users to train on and {tested_on} held out: too few; collect more data")

    root = f"root={options.runs}"
    popi("train", options.config, f"name={name}", root, f"data.source={train}", f"data.test={test}", *options.overrides)
    run, current = options.runs / name, options.runs / "current"
    popi("evaluate", "--run", run)
    new = accuracy(run / "metrics.json", METHOD)
    old_name, old = deployed_accuracy(current, run, test)
    print(f"{trained_on} users trained on, {tested_on} held out; reward accuracy {old:.3f} ({old_name}) -> {new:.3f}")
    if new <= old:
        print(f"not better: {old_name} stays")
        return False
    deploy(run, current)
    print(f"deployed: {current} -> {name}")
    return True


if __name__ == "__main__":
    main()

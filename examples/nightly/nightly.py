"""What the gateway gathered by day trains the inference model by night: export, train, evaluate, deploy if better.

python examples/nightly/nightly.py --store sqlite:///popi.db --tenant shop --runs runs/nightly

    export    users of the store, as the JSONL that `popi train` reads; a fifth of them, the same ones every night,
              is held out
    train     a run of its own for each night, from the base model on all that there is
    evaluate  the new run and the one that is deployed, on tonight's held-out users
    deploy    only what is better: the link RUNS/current then points at the new run
    clear     the export is removed, however the night ended: who is erased from the gateway must not live on in it

The worker is started once with `popi worker --run runs/nightly/current`; it reads the run at its start, so give
`--restart` the command that starts it anew. Runs from cron; a night that fails changes nothing that is deployed.
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
    """Run a command of popi; what it says goes to the log."""
    subprocess.run([sys.executable, "-m", "popi.cli", *map(str, arguments)], check=True)


def held_out(user_id: str, share: float) -> bool:
    """Whether a user is never trained on. A hash decides, so that tomorrow's answer is today's."""
    return int.from_bytes(sha256(user_id.encode()).digest()[:8]) / 2**64 < share


def split(exported: Path, train: Path, test: Path, share: float) -> tuple[int, int]:
    """Write the two halves of an export; how many users are in each."""
    counts = [0, 0]
    with exported.open(encoding="utf-8") as lines, train.open("w") as kept, test.open("w") as held:
        for line in lines:
            out = held_out(json.loads(line)["user_id"], share)
            (held if out else kept).write(line)
            counts[out] += 1
    return counts[0], counts[1]


def accuracy(metrics: Path, method: str) -> float:
    """A method's reward accuracy: the share of held-out pairs whose preferred response its summary makes likelier."""
    return float(json.loads(metrics.read_text())["methods"][method]["reward_accuracy"]["value"])


def deployed_accuracy(current: Path, fresh: Path, test: Path) -> tuple[str, float]:
    """What is deployed and how good it is tonight; before the first night, the untrained base."""
    if not current.exists():
        return "the untrained base", accuracy(fresh / "metrics.json", UNTRAINED)
    popi("evaluate", "--run", current.resolve(), "--users", test)
    metrics = current.resolve() / "evaluation" / f"on-{test.stem}" / "metrics.json"
    return current.resolve().name, accuracy(metrics, METHOD)


def deploy(run: Path, current: Path) -> None:
    """Point `current` at a run, in one step: whoever reads it sees the old run or the new one."""
    link = current.with_name(f".{current.name}.{os.getpid()}")
    link.symlink_to(run.name)
    os.replace(link, current)


def main() -> None:
    """One night."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="sqlite:///popi.db", help="the gateway's store")
    parser.add_argument("--tenant", default="default", help="whose users")
    parser.add_argument("--runs", type=Path, default=Path("runs/nightly"), help="where the nights are kept")
    parser.add_argument("--config", type=Path, default=HERE / "nightly.toml", help="how to train")
    parser.add_argument("--test-share", type=float, default=0.2, help="share of the users held out")
    parser.add_argument("--restart", default="", help="command that starts the worker anew, after a deployment")
    parser.add_argument("--keep-data", action="store_true", help="keep the export, to look at")
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
    """Export to `data`, train and evaluate the run `name`, deploy it if it is better; says whether it was."""
    # An evaluation is kept by its file's name: each night's has its own.
    exported, train, test = (data / f"{part}-{name}.jsonl" for part in ("users", "train", "test"))
    popi("users", "export", "--tenant", options.tenant, "--store", options.store, "--out", exported)
    trained_on, tested_on = split(exported, train, test, options.test_share)
    if not trained_on or not tested_on:
        sys.exit(f"{trained_on} users to train on and {tested_on} held out: too few; gather more")

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

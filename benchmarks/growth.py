"""How memory and time grow with the number of users: reading and preparing, training, evaluating, summarising.

    python benchmarks/growth.py --users 1000 10000 100000 [--only stages train evaluate infer] [--out growth.json]

Users are from the nano world, one JSON object per line. A thousand distinct ones are repeated with different ids, since
this measures the memory per user. Each measurement runs in a separate process; its memory is the peak resident set size
reported by the kernel after it ends.

- stages: the functions that `popi train` runs before its first step, with the seconds of each.
- train: `popi train`, two steps of the inference phase and two of the generator's, on all users; twenty are held out.
- evaluate: `popi evaluate` of that run on eight users, compared with all training users.
- infer: `popi infer`, two-token summaries by a one-layer model with random weights, so that 100,000 users take minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("stages", "train", "evaluate", "infer")
DIFFERENT = 1000
SETTINGS = [
    "training.orders=['plug_and_play','population_dpo']",
    "training.inference.steps=2",
    "training.inference.users_per_step=4",
    "training.generator.steps=2",
    "training.eval_steps=2",
    "training.eval_users=20",
    "summary.max_tokens=2",
    "data.test_users=8",
]


def write(path: Path, users: int, split: str = "train") -> None:
    """Write users in the format of `popi train`, removing duplicate signals, which some nano users have."""
    from popi.nano.world import make_users

    bodies = []
    for user in make_users(min(users, DIFFERENT), 0, split, targets=4):  # type: ignore[arg-type]
        content = user.user.model_dump(exclude={"user_id"}, exclude_none=True, mode="json")
        signals = {json.dumps({**signal, "id": "", "time": 0}): signal for signal in content["signals"]}
        bodies.append(json.dumps({**content, "signals": list(signals.values())})[1:])
    with path.open("w", encoding="utf-8") as file:
        for n in range(users):
            file.write(f'{{"user_id": "{split}-{n:08d}", {bodies[n % len(bodies)]}\n')


def tiny_model(folder: Path) -> None:
    """Save a tiny nano model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from popi.models.local.loading import locate

    base = Path(locate("nano").path)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 16, 16, 1
    config.num_attention_heads = config.num_key_value_heads = 1
    config.head_dim = 16
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def settings(folder: Path, users: int) -> list[str]:
    files = [f"data.source={folder / 'train.jsonl'}", f"data.test={folder / 'test.jsonl'}"]
    return [str(Path(__file__).parents[1] / "configs" / "nano.toml"), *SETTINGS, *files] + [
        f"data.train_users={users}",
        f"root={folder / 'runs'}",
    ]


def stages(arguments: list[str]) -> None:
    """Print, as JSON, the seconds of each stage and this process's peak memory after it."""
    from rich.console import Console

    from popi.config import load_config
    from popi.data.users import users_of
    from popi.runs.run_directory import RunDirectory
    from popi.training.components import load_components
    from popi.training.progress import PhaseProgress
    from popi.training.rows import draw, hold_out, inference_rows, readable, trainable
    from popi.training.templates import with_template
    from popi.training.trainers import references_for

    took: dict[str, tuple[float, float]] = {}

    def done(name: str) -> None:
        nonlocal began
        took[name] = (time.perf_counter() - began, peak())
        began = time.perf_counter()

    config = with_template(load_config(arguments[0], arguments[1:]))
    run = RunDirectory(config.directory, config)
    parts = load_components(config, {"inference_model"}, None, None)
    began = time.perf_counter()
    done("start")
    users = users_of(config, "train").users
    done("read and check")
    users = trainable(users)
    done("trainable")
    users, held_out = hold_out(users, 20, 0)
    done("hold_out")
    users = readable(users, parts.inference_model)
    done("readable")
    order = draw(len(users), 4, 2, 0)
    done("draw")
    with PhaseProgress(Console(quiet=True), "", 2, 0) as progress:
        run.path.mkdir(parents=True)
        references = references_for([users[i] for i in order], run, parts, progress)
    done("references")
    inference_rows(users, order, parts.inference_model, references, 4, 0)
    done("rows")
    print(json.dumps(took))


def peak() -> float:
    """This process's peak memory so far in MB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def measure(command: list[str]) -> tuple[float, float, str]:
    """(seconds, peak MB, output) of a process."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([sys.executable, *command], stdout=printed, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{errors[-3000:]}")
        printed.seek(0)
        return seconds, usage.ru_maxrss / 1024, printed.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--stages", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stages:
        stages(options.stages)
        return
    rows: dict[str, dict[int, tuple[float, float]]] = {}
    for users in options.users:
        with tempfile.TemporaryDirectory(prefix="growth-", dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
            folder = Path(name)
            write(folder / "train.jsonl", users)
            write(folder / "test.jsonl", 8, "test")
            if "infer" in options.only:
                tiny_model(folder / "tiny")
            arguments, run = settings(folder, users), folder / "runs" / "nano"
            commands = {
                "stages": [__file__, "--stages", *arguments, "name=stages", f"root={folder / 'staged'}"],
                "train": ["-m", "popi", "train", *arguments],
                "evaluate": ["-m", "popi", "evaluate", "--run", str(run)],
                "infer": ["-m", "popi", "infer", str(folder / "train.jsonl"), "--max-tokens", "2"]
                + ["--model", str(folder / "tiny"), "--out", str(folder / "out.jsonl")],
            }
            for kind in KINDS:
                if kind not in options.only and not (kind == "train" and "evaluate" in options.only):
                    continue
                seconds, memory, printed = measure(commands[kind])
                rows.setdefault(kind, {})[users] = seconds, memory
                print(f"{users:>9,} users  {kind:<22} {seconds:8.1f} s {memory:8.0f} MB", flush=True)
                if kind == "stages":
                    for stage, (took, held) in json.loads(printed.splitlines()[-1]).items():
                        rows.setdefault(f"stages: {stage}", {})[users] = took, held
                        print(f"{'':>15}  {stage:<22} {took:8.1f} s {held:8.0f} MB", flush=True)
    for kind in options.only:
        sizes = sorted(rows[kind])
        if len(sizes) > 1:
            few, many = sizes[-2:]
            slope = (rows[kind][many][1] - rows[kind][few][1]) * 2**20 / (many - few)
            each = (rows[kind][many][0] - rows[kind][few][0]) / (many - few)
            at = ", ".join(
                f"{n:,}: {rows[kind][many][1] / 1024 + slope * (n - many) / 2**30:.1f} GB" for n in (10**6, 10**7)
            )
            print(f"{kind}: {slope:,.0f} bytes and {each * 1e6:,.0f} µs per user from {few:,} to {many:,}; at {at}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

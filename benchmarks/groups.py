"""Several target pairs per summary: tokens and CPU seconds of a generator step, by `targets_per_summary`.

python benchmarks/groups.py [--model NAME_OR_PATH] [--targets 1 4] [--repeats N]; steps of 32 pairs of nano users, with
true summaries (`summary`) and raw signals (`raw_signals`), forward and backward without the optimizer's step. The ways
are interleaved, and medians are printed, in CPU seconds because other load affects those little.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from popi.engine.tree import segment_logps
from popi.generator import Generator
from popi.nano.world import make_users, oracle_summary
from popi.training.objective import dpo_loss, margin
from popi.training.phases.generator import collate
from popi.training.references import References
from popi.training.rows import GeneratorRow, generator_rows, raw_signals_rows

PAIRS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--token-budget", type=int, default=900)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    generator = Generator.from_pretrained(options.model)
    made = make_users(PAIRS // 4, 0, "train")
    users, texts = [user.user for user in made], [oracle_summary(user) for user in made]
    with TemporaryDirectory() as folder:
        references = References(Path(folder) / "references.jsonl")
        references.compute(users, generator)
    rows: dict[tuple[str, int], list[GeneratorRow]] = {}
    for targets in options.targets:
        summaries = [[text] * PAIRS for text in texts]
        rows["summary", targets] = generator_rows(users, summaries, generator, references, targets)[:PAIRS]
        raw = raw_signals_rows(users, generator, references, options.token_budget, targets)
        rows["raw_signals", targets] = raw[:PAIRS]
    model, batches = generator.local.model, collate(generator.local.pad_id)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in rows}
    losses: dict[tuple[str, int], float] = {}
    for turn in range(options.repeats + 1):
        for key, step_rows in rows.items():
            model.zero_grad()
            started = time.process_time()
            batch = batches(step_rows)
            logps = segment_logps(model, batch["trees"]).reshape(-1, 2)
            h = margin(logps[:, 0], logps[:, 1], batch["ref_chosen"], batch["ref_rejected"])
            loss = dpo_loss(h, 0.1).mean()
            loss.backward()
            if turn:  # the first turn is a warm-up
                seconds[key].append(time.process_time() - started)
            losses[key] = float(loss.detach())
    table = Table("context", "targets per summary", "tokens per pair", "CPU seconds per step", "loss")
    for key, step_rows in rows.items():
        tokens = sum(batches(step_rows)["trees"].lengths) / len(step_rows)
        table.add_row(
            key[0], str(key[1]), f"{tokens:.1f}", f"{statistics.median(seconds[key]):.3f}", f"{losses[key]:.6f}"
        )
    Console().print(table, f"{torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()

"""Tree rows against whole sequences: seconds to score G summaries on one user's targets, with the same model and data.

python benchmarks/scoring.py [--model NAME_OR_PATH] [--users N] [--group-size G]; the ways are interleaved, and medians
and ratios are printed and written to runs/bench/scoring.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from popi.engine.scoring import ScoringItem, pair_logps, pair_logps_plain
from popi.generator import Generator
from popi.nano.world import make_users, oracle_summary


def whole_batches(model: Any, items: list[ScoringItem], pad_id: int, batch_size: int = 64) -> torch.Tensor:
    """(n, 2) summed log-probs of chosen and rejected: each response and its prefix are a separate sequence, in padded
    batches, with logits of every position.
    """
    sums = []
    pairs = [(item.prefix, response) for item in items for response in (item.chosen, item.rejected)]
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        width = max(len(prefix) + len(response) for prefix, response in batch)
        ids = torch.full((len(batch), width), pad_id)
        scored = torch.zeros(len(batch), width, dtype=torch.bool)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, (prefix, response) in enumerate(batch):
            length = len(prefix) + len(response)
            ids[row, :length] = torch.tensor([*prefix, *response])
            scored[row, len(prefix) : length] = True
            mask[row, :length] = 1
        with torch.no_grad():
            logps = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float(), -1)
        taken = logps[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        sums.append((taken * scored[:, 1:]).sum(1))
    return torch.cat(sums).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/scoring.json"))
    options = parser.parse_args()
    generator = Generator.from_pretrained(options.model)
    users = make_users(options.users, 0, "train")
    summaries = [oracle_summary(user) for user in make_users(options.group_size, 1, "train")]
    items = [item for user in users for text in summaries for item in generator.items(user.user.targets, text)]
    model, pad = generator.local.model, generator.local.pad_id

    def one_by_one() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack(pair_logps_plain(model, items), 1)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "whole sequences, one by one": one_by_one,
        "whole sequences, batched": lambda: whole_batches(generator.local.model, items, generator.local.pad_id),
        "tree rows": lambda: torch.stack(pair_logps(model, items, pad), 1),
    }
    truth = one_by_one()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    worst = dict.fromkeys(ways, 0.0)
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            worst[name] = max(worst[name], float((way() - truth).abs().max()))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table("way", "seconds", "ratio to tree rows", "largest difference (nats)")
    rows = []
    for name, median in medians.items():
        ratio = median / medians["tree rows"]
        table.add_row(name, f"{median:.3f}", f"{ratio:.1f}", f"{worst[name]:.1e}")
        rows.append({"what": name, "model": options.model, "pairs": len(items), "seconds": median, "ratio": ratio})
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

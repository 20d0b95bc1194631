"""How well the signals behind a clause are identified, for nano users, compared with the world's truth.

    python benchmarks/provenance.py [users]          # 40 users: about a minute on one core

Prints the table of docs/profiles.md.
"""

import sys
import time

from popi.inference_model import InferenceModel
from popi.nano.truth import is_evidence, named_attributes
from popi.nano.world import make_users
from popi.profiles.clauses import split
from popi.serving.worker.provenance import MIN_NATS, SHARE_OF_BEST, LeaveOneOut


def main(users: int) -> None:
    model = InferenceModel.from_pretrained("nano")
    way = LeaveOneOut(model)
    rows: list[tuple[list[float], list[bool]]] = []
    seconds, signals_read, silent, unreadable = 0.0, 0, 0, 0
    for person in make_users(users, 1, "test"):
        signals = person.user.signals
        summary = model.summarize(signals)
        if summary.abstained:
            silent += 1
            continue
        text = summary.text
        clauses = split(text, wishes=True)
        began = time.perf_counter()
        weights = way.weights(signals, text, clauses)
        seconds += time.perf_counter() - began
        signals_read += len(signals)
        for clause, clause_weights in zip(clauses, weights, strict=True):
            named = named_attributes(clause)
            if len(named) != 1:
                unreadable += 1  # the true evidence is only known for clauses about a single attribute
                continue
            rows.append((clause_weights, [is_evidence(signal, *named) for signal in signals]))
    every = [true for _, truth in rows for true in truth]
    chosen = []
    for weights, truth in rows:
        least = max(MIN_NATS, SHARE_OF_BEST * max(weights))
        chosen.append([true for weight, true in zip(weights, truth, strict=True) if weight >= least])
    pointed = sum(map(len, chosen))
    right = sum(map(sum, chosen))
    best = sum(truth[max(range(len(weights)), key=weights.__getitem__)] for weights, truth in rows)
    spoken = users - silent
    print(f"users {users}, without a summary {silent}; clauses {len(rows)}, plus {unreadable} that name no attribute")
    print(f"signals {signals_read / spoken:.1f} per user, {1000 * seconds / spoken:.0f} ms per user")
    print(f"random signal is evidence        {sum(every) / len(every):.2f}")
    print(f"heaviest signal is evidence      {best / len(rows):.2f}")
    print(f"named signals that are evidence  {right / pointed:.2f}  ({pointed / len(rows):.1f} named per clause)")
    print(f"evidence that is named           {right / sum(every):.2f}")
    print(f"AUC of the weights               {auc(rows):.2f}")


def auc(rows: list[tuple[list[float], list[bool]]]) -> float:
    """The probability that, within a clause, a signal that is evidence has more weight than one that is not."""
    wins = total = 0.0
    for weights, truth in rows:
        for weight, true in zip(weights, truth, strict=True):
            if true:
                others = [other for other, fair in zip(weights, truth, strict=True) if not fair]
                wins += sum((weight > other) + 0.5 * (weight == other) for other in others)
                total += len(others)
    return wins / total


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)

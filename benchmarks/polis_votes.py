"""How well votes alone predict a vote: an upper reference for reading Polis users, without any language model.

python benchmarks/polis_votes.py configs/smollm2_polis.toml [dotted.key=value ...]

Two predictors of which of two statements a held-out user agreed with, fitted to the training users' votes:

    popularity   w_a > w_b, where w are the Bradley–Terry strengths of the statements (ridge)
    own votes    the same with w_a + λ·Σ_v r_v·S_av instead of w_a, where S is the similarity of statements by training
                 users' votes, shrunk by n/(n+s), and r_v are the user's signals as votes (+1 agreed, −1 disagreed)
                 minus their mean

λ and s are chosen on a fifth of the training users; the test users are used only once.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from popi.config import load_config
from popi.data.users import users_of
from popi.evaluation.metrics import outcomes, paired_difference, reward_accuracy
from popi.signals.types import PairSignal, User

Votes = list[tuple[int, int]]
"""(agreed, disagreed) as indices of statements."""


class Statements:
    """Numbers statements; a statement is identified by its question and text."""

    def __init__(self) -> None:
        self.number: dict[tuple[str, str], int] = {}

    def votes(self, user: User) -> tuple[Votes, Votes]:
        """A user's signals and targets."""
        signals = [s for s in user.signals if isinstance(s, PairSignal)]
        signal_votes = [(self._of(s.prompt, s.chosen), self._of(s.prompt, s.rejected)) for s in signals]
        return signal_votes, [(self._of(t.prompt, t.chosen), self._of(t.prompt, t.rejected)) for t in user.targets]

    def _of(self, prompt: object, text: str) -> int:
        return self.number.setdefault((str(prompt), text), len(self.number))


def strengths(pairs: Votes, n: int, ridge: float = 0.1, steps: int = 500) -> np.ndarray:
    """(n,) Bradley–Terry strengths by gradient descent on the ridge-penalised log-loss."""
    agreed, disagreed = np.array(pairs).T
    w = np.zeros(n)
    for _ in range(steps):
        wrong = 1 / (1 + np.exp(w[agreed] - w[disagreed]))
        step = -ridge * w
        np.add.at(step, agreed, wrong)
        np.add.at(step, disagreed, -wrong)
        w += 0.1 * step
    return w


class OwnVotes:
    """Popularity, plus the opinions of users with similar votes."""

    def __init__(self, people: list[tuple[Votes, Votes]], n: int) -> None:
        self.w = strengths([pair for signals, targets in people for pair in signals + targets], n)
        table = np.zeros((len(people), n))
        for row, (signals, targets) in zip(table, people, strict=True):
            for agreed, disagreed in signals + targets:
                row[agreed], row[disagreed] = 1, -1
        voted = (table != 0).astype(float)
        self.mean = table.sum(0) / (voted.sum(0) + 2)
        rest = np.where(voted > 0, table - self.mean, 0)
        self.together, self.product = voted.T @ voted, rest.T @ rest

    def margins(self, people: list[tuple[Votes, Votes]], weight: float, shrink: float) -> list[float]:
        """One margin per target; weight 0 uses popularity only."""
        similarity = self.product / (self.together + shrink)
        differences = []
        for signals, targets in people:
            liking = np.zeros(len(self.w))
            for agreed, disagreed in signals:
                liking += (1 - self.mean[agreed]) * similarity[:, agreed]
                liking += (-1 - self.mean[disagreed]) * similarity[:, disagreed]
            score = self.w + weight * liking
            differences += [float(score[a] - score[b]) for a, b in targets]
        return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    statements = Statements()
    train_users, test_users = (users_of(config, split).users for split in ("train", "test"))
    train, test = ([statements.votes(user) for user in users] for users in (train_users, test_users))
    n = len(statements.number)
    fitted = OwnVotes(train[len(train) // 5 :], n)
    tuning = train[: len(train) // 5]

    def right(weight: float, shrink: float) -> float:
        return float(np.mean(outcomes(fitted.margins(tuning, weight, shrink))))

    weight, shrink = max(product((0.1, 0.3, 1, 2, 4, 8), (2, 5, 10, 20, 50)), key=lambda pair: right(*pair))
    fitted = OwnVotes(train, n)
    users = [user.user_id for user in test_users for _ in user.targets]
    plain, own = fitted.margins(test, 0, 1), fitted.margins(test, weight, shrink)
    table = Table("predictor", "reward accuracy", title=f"{len(test)} held-out users, {len(users)} pairs")
    rows = {"popularity": reward_accuracy(plain, users), "own votes": reward_accuracy(own, users)}
    rows["own votes − popularity"] = paired_difference(outcomes(own), outcomes(plain), users, (-1, 1))
    for name, e in rows.items():
        table.add_row(name, f"{e.value or 0:.3f} [{e.low or 0:.3f}, {e.high or 0:.3f}]")
    Console().print(table)
    print(f"chosen on training users: λ = {weight}, s = {shrink}")


if __name__ == "__main__":
    main()

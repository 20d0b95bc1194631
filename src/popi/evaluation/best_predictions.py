"""For the nano world: the best possible prediction of a choice, given what each method tells its generator."""

from collections.abc import Mapping, Sequence
from typing import Any

from popi.config import RunConfig
from popi.data.users import Person
from popi.evaluation.loss_terms import FOLDS
from popi.evaluation.methods import METHODS


class BestPredictions:
    """P(c | k) for held-out users' target pairs, where k is what a method tells its generator (`Method.tells`).

    Given nothing, the signals or the true preferences, it is exact for the combinations of preferences that held-out
    users have. Given a summary, it is the prediction of a reader who knows the world and has learned from other users'
    summaries (5 folds of users) how often this writer names each attribute (`nano.readers`). Such a reader
    ignores a summary's order, wording and emphasis, so its loss is an upper bound.

    Args:
        people: the run's own held-out nano users, in the order of the rows' windows.
        world: their world, `easy` or `hard`.
    """

    def __init__(self, people: Sequence[Person], world: str = "easy") -> None:
        from popi.nano import readers

        self.people, self.reader = people, readers.READERS[world]
        self._signals: dict[int, Any] = {}

    @staticmethod
    def known(config: RunConfig, people: Sequence[Person]) -> bool:
        """Whether these users' true preferences are known, as for a run's own users of the nano world."""
        return config.data.source == "nano" and all(person.preferences is not None for person in people)

    def given(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """(N,) the best predictor's probability of each row's choice under the method `name`."""
        tells = METHODS[name].tells
        if tells == "preferences":  # targets are noise-free: the preferences determine the choice
            return [1.0] * len(rows)
        if tells == "summary":
            return self._given_summaries(rows)
        return self.given_signals(rows) if tells == "signals" else self.given_nothing(rows)

    def given_nothing(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """From the pair alone, under the prior over preferences."""
        return [self._choice(self.reader.prior(), row) for row in rows]

    def given_signals(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """From all of the user's signals."""
        return [self._choice(self._after_signals(row["window"]), row) for row in rows]

    def _given_summaries(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        from popi.nano.truth import named_attributes

        first = {row["window"]: frozenset(named_attributes(row["summary"])) for row in reversed(rows)}
        truths = {window: self.people[window].preferences or frozenset() for window in first}
        users = list(dict.fromkeys(row["user_id"] for row in rows))
        fold = {user: i % min(FOLDS, len(users)) for i, user in enumerate(users)}
        fold_of = {row["window"]: fold[row["user_id"]] for row in rows}
        channels = {
            k: self.reader.channel([(first[w], truths[w]) for w in first if fold_of[w] != k])
            for k in set(fold.values())
        }
        beliefs: dict[tuple[int, frozenset[tuple[str, ...]]], Any] = {}
        probabilities = []
        for row in rows:
            key = fold_of[row["window"]], frozenset(named_attributes(row["summary"]))
            if key not in beliefs:
                beliefs[key] = channels[key[0]](key[1])
            probabilities.append(self._choice(beliefs[key], row))
        return probabilities

    def _after_signals(self, window: int) -> Any:
        if window not in self._signals:
            self._signals[window] = self.reader.given_signals(self.people[window].user.signals)
        return self._signals[window]

    def _choice(self, belief: Any, row: Mapping[str, Any]) -> float:
        return self.reader.choice_probability(belief, self.people[row["window"]].user.targets[row["target"]])

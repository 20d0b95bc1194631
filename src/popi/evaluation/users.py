"""Held-out users to evaluate on: the nano world's, the run's own test file, or any JSONL file."""

from pathlib import Path

from popi.config import RunConfig
from popi.errors import ConfigError
from popi.evaluation.methods import HeldOutUser


def held_out_users(config: RunConfig, path: str | Path | None = None) -> list[HeldOutUser]:
    """The users to evaluate on, each with at least one target pair.

    Args:
        config: names the source of the run's own held-out users; only the first `data.test_users` are taken.
        path: a JSONL file to take all users of instead. Files carry no truth.

    Raises:
        ConfigError: the run was trained on a file and names no test file.
        DataError: the file is faulty, leaks targets into signals, or holds users that the run was trained on.
    """
    if path is None and config.data.source == "nano":
        return _nano_users(config)
    if path is None and config.data.test is None:
        raise ConfigError(
            "data.test is not set, so there is nobody to evaluate on; set it to a JSONL file of users, "
            "or name one with --users FILE"
        )
    from popi.signals.check import load_users

    source = path or config.data.test
    assert source is not None
    trained_on = [] if config.data.source == "nano" else [config.data.source]
    users = load_users(source, against=trained_on, **config.data.windows())
    if path is None:
        users = users[: config.data.test_users]
    return [HeldOutUser(user) for user in users]


def _nano_users(config: RunConfig) -> list[HeldOutUser]:
    from popi.nano.world import make_users, oracle_summary

    made = make_users(config.data.test_users, config.seed, "test", config.data.targets_per_user)
    return [HeldOutUser(m.user, frozenset(m.preferences.items()), oracle_summary(m)) for m in made]


def named_attributes(text: str) -> set[tuple[str, str]]:
    """The nano world's (attribute, value) pairs that a summary names."""
    from popi.nano.truth import named_attributes as read_off

    return read_off(text)

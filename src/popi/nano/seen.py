"""Task prompts on topics that everybody trained on, for held-out users, whose own are all on other topics."""

from random import Random

from popi.nano.grammar import TOPICS, realise, task_prompt
from popi.nano.world import TARGET_UNCARED, cycle, pair_values
from popi.signals.types import TargetPair


def seen_targets(user_id: str, preferences: dict[str, str], n: int, seed: int) -> list[TargetPair]:
    """`n` target pairs of a held-out user on topics of the training split, the same for the same user and seed.

    The forms of the prompts and the wordings are those of the test split: only the topics differ from the user's own.
    """
    rng = Random(f"popi-nano-seen-{seed}-{user_id}")
    targets = []
    for focus, topic in zip(cycle(preferences, n, rng), rng.sample(TOPICS, n), strict=True):
        better, worse = pair_values(preferences, focus, rng, TARGET_UNCARED)
        prompt = task_prompt(topic, rng, "test")
        chosen, rejected = (realise(values, topic, rng, "test").text for values in (better, worse))
        targets.append(TargetPair(prompt=prompt, chosen=chosen, rejected=rejected))
    return targets

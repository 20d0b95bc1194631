"""Task prompts on training topics for held-out users, whose own prompts are all on unseen topics."""

from collections.abc import Callable
from random import Random

from popi.nano.grammar import TOPICS, realise, task_prompt
from popi.nano.world import TARGET_UNCARED, pair_values
from popi.signals.types import TargetPair


def seen_targets(user_id: str, wanted: Callable[[str], dict[str, str]], n: int, seed: int) -> list[TargetPair]:
    """`n` target pairs for a held-out user on topics of the training split, determined by user and seed.

    The forms of the prompts and the wordings are those of the test split; only the topics differ from the user's own.

    Args:
        user_id: the user's id.
        wanted: topic → attribute → the value that the user prefers for that topic.
        n: number of pairs, each on a different topic.
        seed: seed for topics and texts.
    """
    rng = Random(f"popi-nano-seen-{seed}-{user_id}")
    targets = []
    for topic in rng.sample(TOPICS, n):
        holds = wanted(topic)
        better, worse = pair_values(holds, rng.choice(sorted(holds)), rng, TARGET_UNCARED)
        prompt = task_prompt(topic, rng, "test")
        chosen, rejected = (realise(values, topic, rng, "test").text for values in (better, worse))
        targets.append(TargetPair(prompt=prompt, chosen=chosen, rejected=rejected))
    return targets

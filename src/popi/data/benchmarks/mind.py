"""MIND: news that people clicked on, and which of two stories shown together a person opened.

Dataset: the folder of one split of MIND (MINDsmall_train; Wu et al., ACL 2020, Microsoft Research licence) with
`behaviors.tsv` and `news.tsv`. Columns follow the repository recommenders-team/recommenders (models/newsrec/io/
mind_iterator.py): impression id, user id, time, clicked history, impressions (`N1-1` clicked, `N2-0` not); and news
id, category, subcategory, title, abstract, ….

Signals are the last `signals_per_user` titles of the person's history; targets are clicked stories, each against one
that was shown with it and not clicked, chosen by a hash. Only a person's last impression with enough of both is used,
since all of a person's impressions have the same history. Users are split by a seeded hash.
"""

from collections import Counter
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, Split, digest, in_hash_order, share
from popi.data.benchmarks.rows import good_rows
from popi.errors import DataError
from popi.signals.types import InteractionSignal, Signal, TargetPair, Text

VERSION = "mind/1"
PROMPT = "Which story would you like to read?"
BEHAVIORS = Columns(("impression_id", "user_id", "time", "history", "impressions"))
NEWS = Columns(("news_id", "category", "subcategory", "title"))
ANOTHER = "another impression of the same person is used instead"
FEW = "fewer clicked or unclicked stories than targets_per_user, or no history"


class Impression(BaseModel):
    """One row of behaviors.tsv."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text
    history: str = ""
    impressions: Text


class Story(BaseModel):
    """One row of news.tsv."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    news_id: Text
    category: Text
    title: Text

    def description(self) -> str:
        """Title and category."""
        return f"{self.title} ({self.category})"


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with no person in both."""
    folder = Path(options.path or "")
    for name in ("behaviors.tsv", "news.tsv"):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: has no {name}; set the path to the folder of one MIND split, with both tables")
    train = loaded.train
    news = good_rows(str(folder / "news.tsv"), "train", Story, NEWS, Split("news"), options, loaded.problems)
    stories = {story.news_id: story.description() for story in news}
    table = str(folder / "behaviors.tsv")
    rows = list(good_rows(table, "train", Impression, BEHAVIORS, train, options, loaded.problems))
    number = Counter(row.user_id for row in rows)
    last = {row.user_id: row for row in rows if _enough(row, stories, options)}
    for user in in_hash_order(number, options.seed, str):
        held_out = share(options.seed, "user", user) < options.test_share
        split = loaded.others["test"] if held_out else train
        train.rows -= number[user] * held_out
        split.rows += number[user] * held_out
        if user not in last:
            split.dropped[FEW] += number[user]
            continue
        split.dropped[ANOTHER] += number[user] - 1
        clicked, unclicked = _shown(last[user], stories)
        draw = Random(digest("popi-mind", options.seed, user))
        pairs = zip(
            draw.sample(clicked, options.targets_per_user), draw.sample(unclicked, len(unclicked)), strict=False
        )
        targets = [TargetPair(prompt=PROMPT, chosen=chosen, rejected=rejected) for chosen, rejected in pairs]
        history = [stories[story] for story in last[user].history.split() if story in stories]
        signals: list[Signal] = [InteractionSignal(prompt=PROMPT, response=title) for title in history]
        split.add(user, signals[-options.signals_per_user :], targets, None, rows=1)


def _shown(row: Impression, stories: dict[str, str]) -> tuple[list[str], list[str]]:
    """The stories that were clicked, and those that were not."""
    impressions = [impression.rpartition("-") for impression in row.impressions.split()]
    known = [(stories[story], mark) for story, _, mark in impressions if story in stories]
    clicked = list(dict.fromkeys(title for title, mark in known if mark == "1"))
    return clicked, [title for title in dict.fromkeys(title for title, _ in known) if title not in clicked]


def _enough(row: Impression, stories: dict[str, str], options: Options) -> bool:
    clicked, unclicked = _shown(row, stories)
    pairs = min(len(clicked), len(unclicked))
    return pairs >= options.targets_per_user and any(story in stories for story in row.history.split())

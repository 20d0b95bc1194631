"""Amazon reviews (2023): a person's review of a product against another person's.

Dataset: a folder with the reviews and the products of one category of McAuley-Lab/Amazon-Reviews-2023 (arXiv
2403.03952) as JSONL or parquet, `raw_review_NAME` and `raw_meta_NAME` (any names that contain `review` and `meta`).
Columns follow code that joins the two (repository hyp1231/AmazonReviews2023 and loaders of the hub dataset): `user_id`,
`parent_asin`, `rating`, `text`, `timestamp`; and `parent_asin`, `title`.

A person's older reviews are signals, with the product's title as context; the next ones are targets: the person's own
text against one by another person of the same split, for the same product and number of stars, chosen by a hash. The
remaining difference is how people write and what they pay attention to. Users are split by a seeded hash.
"""

from collections import defaultdict
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import REPEATED, Loaded, Options, Split, digest, in_hash_order, share
from popi.data.benchmarks.rows import good_rows
from popi.data.places import SUFFIXES
from popi.errors import DataError
from popi.signals.types import PostSignal, Signal, TargetPair, Text

VERSION = "amazon/1"
REVIEWS = Columns(("user_id", "parent_asin", "rating", "text", "timestamp"))
PRODUCTS = Columns(("parent_asin", "title"))
UNTITLED = "a product without a title"
BLANK = "a review without text"
ALONE = "no one else reviewed the target's product with as many stars"


class Review(BaseModel):
    """One review."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text
    parent_asin: Text
    rating: int | float
    text: str
    timestamp: int


class Product(BaseModel):
    """One product."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    parent_asin: Text
    title: str | None = None


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with no person in both."""
    folder, train = Path(options.path or ""), loaded.train
    place = _table(folder, "meta")
    products = good_rows(place, "train", Product, PRODUCTS, Split("products"), options, loaded.problems)
    titles = {item.parent_asin: item.title.strip() for item in products if item.title and item.title.strip()}
    of_user: dict[str, list[Review]] = defaultdict(list)
    of_product: dict[tuple[bool, str, float], list[Review]] = defaultdict(list)

    def in_test(user: str) -> bool:
        return share(options.seed, "user", user) < options.test_share

    place = _table(folder, "review")
    for row in good_rows(place, "train", Review, REVIEWS, train, options, loaded.problems):
        of_user[row.user_id].append(row)
        if row.text.strip():
            of_product[in_test(row.user_id), row.parent_asin, row.rating].append(row)
    windows = []
    for user in in_hash_order(of_user, options.seed, str):
        held_out = in_test(user)
        split = loaded.others["test"] if held_out else train
        train.rows -= len(of_user[user]) * held_out
        split.rows += len(of_user[user]) * held_out
        reviews = _usable(of_user[user], titles, split)
        size = options.signals_per_user + options.targets_per_user
        cut = [reviews[start : start + size] for start in range(0, len(reviews) - size + 1, size)]
        split.left_over += len(reviews) - size * len(cut)
        windows += [(turn, user, split, window) for turn, window in enumerate(cut)]
    for _, user, split, window in sorted(windows, key=lambda window: window[0]):
        _add(user, window, split, titles, of_product, options)


def _usable(rows: list[Review], titles: dict[str, str], split: Split) -> list[Review]:
    """Reviews with text of products with a title, one per product, oldest first."""
    by_product: dict[str, Review] = {}
    for row in sorted(rows, key=lambda row: (row.timestamp, row.parent_asin, row.text)):
        if not row.text.strip():
            split.dropped[BLANK] += 1
        elif row.parent_asin not in titles:
            split.dropped[UNTITLED] += 1
        elif by_product.setdefault(row.parent_asin, row) is not row:
            split.dropped[REPEATED] += 1
    return list(by_product.values())


def _add(
    user: str,
    window: list[Review],
    split: Split,
    titles: dict[str, str],
    of_product: dict[tuple[bool, str, float], list[Review]],
    options: Options,
) -> None:
    shown, target_rows = window[: options.signals_per_user], window[options.signals_per_user :]
    targets = []
    for row in target_rows:
        others = of_product[split.name == "test", row.parent_asin, row.rating]
        texts = sorted({other.text.strip() for other in others if other.user_id != user} - {row.text.strip()})
        if not texts:
            split.dropped[ALONE] += len(window)
            return
        rejected = Random(digest("popi-amazon", options.seed, user, row.parent_asin)).choice(texts)
        prompt = f"Write a review of {titles[row.parent_asin]!r} ({row.rating:g} of 5 stars)."
        targets.append(TargetPair(prompt=prompt, chosen=row.text.strip(), rejected=rejected))
    signals: list[Signal] = [
        PostSignal(text=f"{row.text.strip()} ({row.rating:g} of 5 stars)", context=titles[row.parent_asin])
        for row in shown
    ]
    split.add(user, signals, targets, None, rows=len(window))


def _table(folder: Path, kind: str) -> str:
    files = sorted(file for file in folder.glob(f"*{kind}*") if file.suffix in SUFFIXES) if folder.is_dir() else []
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(
            f"{folder}: must be a folder with one file of reviews and one of products (raw_review_NAME.jsonl and "
            f"raw_meta_NAME.jsonl); files with {kind!r} in their name: {names}"
        )
    return str(files[0])

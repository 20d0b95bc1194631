"""MovieLens: films rated by real people, and which of two equally well-known ones a person liked.

Dataset: the folder of any MovieLens release in CSV (ml-latest-small, ml-25m, ml-32m; F. Maxwell Harper and Joseph A.
Konstan, 2015, DOI 10.1145/2827872; for research, not redistributed with popi): `ratings.csv` with `userId`, `movieId`,
`rating`, and `movies.csv` with `movieId`, `title`, `genres` (columns follow the releases' README).

A film is described by its title, genres and decade. A person's signals are films that they liked (`LIKED` stars or
more); a target pair is another film that they liked against one that they never rated. Popularity largely predicts
whether somebody rated a film, so the two films have similar popularity: that of the unrated film is up to the share
`SIMILAR` higher or lower, decided by a coin flip, and films without candidates on both sides are not used as targets.
Popularity alone reaches `popularity_accuracy`: 0.504 on the 5,544 test pairs of ml-latest-small with `test_share` 0.4.

A seeded hash splits people. Popularity is counted over training people, without a person's own rating, and films rated
by fewer than `KNOWN` of them are in no pair, so test people's ratings do not influence which pairs are drawn.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict, FiniteFloat

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, Split, digest, in_hash_order, share
from popi.data.benchmarks.rows import good_rows
from popi.errors import DataError
from popi.signals.types import InteractionSignal, TargetPair, Text

VERSION = "movielens/1"
PROMPT = "Which film would you like to watch?"
LIKED = 4.0
KNOWN = 5
SIMILAR = 0.15
"""Maximum relative difference between the popularities of a pair's films."""
UNLIKED = f"rated below {LIKED:g}: only shows that the person knows the film"
UNKNOWN = f"a film rated by fewer than {KNOWN} training people"
UNTITLED = "a film that is not in movies.csv"
RATINGS = Columns(("userId", "movieId", "rating"))
FILMS = Columns(("movieId", "title", "genres"))


class Rating(BaseModel):
    """One row of ratings.csv."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    userId: Text
    movieId: Text
    rating: FiniteFloat


class Film(BaseModel):
    """One row of movies.csv."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    movieId: Text
    title: Text
    genres: Text

    def description(self) -> str:
        """In plain text: `Heat (1995): action, crime, thriller; 1990s`."""
        year = re.search(r"\((\d{3})\d\)\s*$", self.title)
        genres = "" if self.genres.startswith("(no") else ", ".join(self.genres.lower().split("|"))
        return "; ".join([f"{self.title}: {genres}" if genres else self.title, *([f"{year[1]}0s"] if year else [])])


@dataclass(frozen=True)
class Ratings:
    """All films and ratings."""

    films: Mapping[str, Film]
    people: Mapping[str, Mapping[str, float]]
    """User → film → rating."""
    popularity: Mapping[str, int]
    """Film → training people who rated it."""
    trained: frozenset[str]

    def popular(self, user: str, film: str) -> int:
        """Number of other training people who rated a film."""
        return self.popularity[film] - (user in self.trained and film in self.people[user])


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with different people."""
    ratings = read_ratings(options, loaded)
    known = sorted((count, film) for film, count in ratings.popularity.items() if count >= KNOWN)
    signals, targets = options.signals_per_user, options.targets_per_user
    if loaded.problems:
        return
    for split in (loaded.train, loaded.others["test"]):
        users = [user for user in ratings.people if (user in ratings.trained) == (split is loaded.train)]
        windows: list[tuple[int, str, list[str], list[str]]] = []
        for user in in_hash_order(users, options.seed, str):
            films = ratings.people[user]
            liked = [film for film, rating in films.items() if rating >= LIKED]
            usable = [film for film in liked if ratings.popular(user, film) >= KNOWN]
            usable = in_hash_order(usable, options.seed, lambda film, user=user: f"{user}\t{film}")
            matched = [film for film in usable if all(_similar(user, film, ratings, known))]
            n = min(len(matched) // targets, len(usable) // (signals + targets))
            target_films = matched[: n * targets]
            shown = [film for film in usable if film not in set(target_films)]
            for turn in range(n):
                window = shown[turn * signals :][:signals], target_films[turn * targets :][:targets]
                windows.append((turn, user, *window))
            loaded.train.rows -= len(films) if split is not loaded.train else 0
            split.rows += len(films) if split is not loaded.train else 0
            split.dropped[UNLIKED] += len(films) - len(liked)
            split.dropped[UNKNOWN] += len(liked) - len(usable)
            split.left_over += len(usable) - n * (signals + targets)
        for _, user, liked, target_films in sorted(
            windows, key=lambda window: window[0]
        ):  # everyone's first window first
            draw = Random(digest("popi-movielens", options.seed, user, *target_films))
            pairs = []
            for film in target_films:
                other = draw.choice(draw.choice(_similar(user, film, ratings, known)))
                pair = {"chosen": ratings.films[film].description(), "rejected": ratings.films[other].description()}
                pairs.append(TargetPair(prompt=PROMPT, **pair))
            likes = [InteractionSignal(prompt=PROMPT, response=ratings.films[film].description()) for film in liked]
            split.add(user, likes, pairs, None, rows=len(liked) + len(target_films))


def _similar(user: str, film: str, ratings: Ratings, known: list[tuple[int, str]]) -> tuple[list[str], list[str]]:
    """Films that the user never rated, slightly less and slightly more popular than `film`."""
    popular, rated = ratings.popular(user, film), ratings.people[user]
    low, high = popular * (1 - SIMILAR), popular * (1 + SIMILAR)
    start, middle = bisect_left(known, (low, "")), bisect_left(known, (popular, ""))
    after, end = bisect_left(known, (popular + 1, "")), bisect_left(known, (high + 1e-9, ""))
    less = [other for _, other in known[start:middle] if other not in rated]
    return less, [other for _, other in known[after:end] if other not in rated]


def read_ratings(options: Options, loaded: Loaded) -> Ratings:
    """Read both tables; bad rows become problems, or are dropped and counted."""
    folder, train = Path(options.path or ""), loaded.train
    for name in ("movies.csv", "ratings.csv"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: has no {name}; set the path to the folder of a MovieLens release with both tables"
            )
    table = str(folder / "movies.csv")
    films = {
        film.movieId: film for film in good_rows(table, "train", Film, FILMS, Split("films"), options, loaded.problems)
    }
    people: dict[str, dict[str, float]] = {}
    table = str(folder / "ratings.csv")
    for row in good_rows(table, "train", Rating, RATINGS, train, options, loaded.problems):
        if row.movieId in films:
            people.setdefault(row.userId, {})[row.movieId] = row.rating
        else:
            train.dropped[UNTITLED] += 1
    test = {user for user in people if share(options.seed, "user", user) < options.test_share}
    trained = frozenset(people) - test
    popularity = Counter(film for user in trained for film in people[user])
    return Ratings(films, people, popularity, trained)


def popularity_accuracy(ratings: Ratings, split: Split) -> float:
    """Accuracy of popularity alone: the share of target pairs whose liked film is the more popular one, ties half."""
    ids = {film.description(): movie for movie, film in ratings.films.items()}
    scores = []
    for entry in split.users:
        user = entry.user
        for target in user.targets:
            liked, other = (ratings.popular(user.user_id, ids[text]) for text in (target.chosen, target.rejected))
            scores.append((liked > other) + 0.5 * (liked == other))
    return sum(scores) / len(scores)

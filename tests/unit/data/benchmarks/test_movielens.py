"""MovieLens: liked against never rated films of like popularity, by rules that training people alone decide."""

from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.config import resolve
from popi.data.benchmarks.movielens import KNOWN, SIMILAR, Film, Ratings, popularity_accuracy, read_ratings
from popi.data.benchmarks.result import Loaded
from popi.data.leaks import refuse_leaks
from popi.data.users import options
from popi.errors import DataError

SIZES = {"signals_per_user": 6, "targets_per_user": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sets.make("movielens", tmp_path_factory.mktemp("movielens"))


@pytest.fixture(scope="module")
def found(folder: str) -> Loaded:
    return sets.loaded("movielens", folder, SIZES, test_share=0.4)


@pytest.fixture(scope="module")
def ratings(folder: str, found: Loaded) -> Ratings:
    benchmark = {"path": folder, "test_share": 0.4}
    return read_ratings(options(resolve({"data": {"source": "movielens", "benchmark": benchmark}}).data), found)


def test_a_film_in_plain_words() -> None:
    def told(title: str, genres: str) -> str:
        return Film(movieId="1", title=title, genres=genres).description()

    assert told("Heat (1995)", "Action|Crime|Film-Noir") == "Heat (1995): action, crime, film-noir; 1990s"
    assert told("Heat (1995) ", "(no genres listed)") == "Heat (1995); 1990s"
    assert told("Hyena Road", "IMAX") == "Hyena Road: imax"


def test_pairs_are_of_like_popularity_and_the_other_film_was_never_rated(found: Loaded, ratings: Ratings) -> None:
    named = {film.description(): movie for movie, film in ratings.films.items()}
    for split in found.splits.values():
        assert split.users
        for one in split.users:
            user = one.user.user_id
            rated = ratings.people[user]
            seen = [named[signal.response] for signal in one.user.signals]  # type: ignore[union-attr]
            asked = [named[target.chosen] for target in one.user.targets]
            assert len(seen) == 6 and len(asked) == 2 and not set(seen) & set(asked)
            assert all(rated[film] >= 4 for film in (*seen, *asked))
            for film, target in zip(asked, one.user.targets, strict=True):
                other = named[target.rejected]
                assert other not in rated
                counts = [ratings.popular(user, it) for it in (film, other)]
                assert counts[0] >= KNOWN and counts[0] != counts[1]
                assert abs(counts[1] - counts[0]) <= SIMILAR * counts[0]
        assert 0.3 < popularity_accuracy(ratings, split) < 0.7
    refuse_leaks([one.user for one in found.others["test"].users], "movielens", [o.user for o in found.train.users])


def test_test_people_decide_nothing(folder: str, found: Loaded, tmp_path: Path) -> None:
    """Whoever else is tested, and whatever they rated, a person's pairs stay as they are."""
    rows, movies = sets.movielens()
    tested = found.others["test"].user_ids
    one = sorted(tested)[0]
    sets.write(tmp_path / "movies.csv", movies)
    kept = [row for row in rows if str(row["userId"]) not in tested or str(row["userId"]) == one]
    sets.write(tmp_path / "ratings.csv", kept)
    alone = sets.loaded("movielens", tmp_path, SIZES, test_share=0.4)
    assert alone.train.users == found.train.users
    mine = [user for user in found.others["test"].users if user.user.user_id == one]
    assert alone.others["test"].users == mine and mine


def test_bad_tables_are_named(folder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no movies\.csv; set the path to the folder of a MovieLens release"):
        sets.loaded("movielens", tmp_path)
    rows, movies = sets.movielens()
    sets.write(tmp_path / "movies.csv", movies)
    sets.write(tmp_path / "ratings.csv", [{**rows[0], "rating": "many"}, *rows[1:], {**rows[0], "movieId": "x"}])
    [problem] = sets.loaded("movielens", tmp_path).problems
    assert (problem.line, problem.field, problem.unit) == (2, "rating", "line")
    found = sets.loaded("movielens", tmp_path, on_bad_rows="drop")
    assert found.train.dropped["bad rows (on_bad_rows = drop)"] == 1 and not found.problems
    assert found.train.dropped["a film that is not in movies.csv"] == 1
    for split in found.splits.values():
        assert split.rows == split.used + split.left_over + sum(split.dropped.values())
    sets.write(tmp_path / "ratings.csv", [{"userId": 1, "movieId": 2}])
    assert "no column 'rating'; its columns: userId, movieId" in sets.loaded("movielens", tmp_path).problems[0].message

"""One summary of two: what wins, and that nothing which a person decided is lost."""

from collections.abc import Sequence

import pytest

from popi.profiles.clauses import join
from popi.profiles.fields import MAX_CLAUSES, Forbidden, StoredClause
from popi.profiles.forbidden import ban
from popi.profiles.merging import merged


def clauses(*texts: str) -> list[StoredClause]:
    """`!` before a text: locked. The ids are the same for each call, as they may be of two users."""
    return [StoredClause(id=f"c{n}", text=one.lstrip("!"), locked=one[0] == "!") for n, one in enumerate(texts)]


def bans(*texts: str) -> list[Forbidden]:
    return [Forbidden(id=f"f{n}", text=one) for n, one in enumerate(texts)]


def of(
    newer: Sequence[StoredClause],
    older: Sequence[StoredClause],
    newer_bans: Sequence[Forbidden] = (),
    older_bans: Sequence[Forbidden] = (),
) -> tuple[str, list[str], list[str]]:
    text, new, forbidden = merged(join(newer), newer, newer_bans, older, older_bans)
    assert len({one.id for one in new}) == len(new) and len({one.id for one in forbidden}) == len(forbidden)
    return text, ["!" * one.locked + one.text for one in new], [one.text for one in forbidden]


def test_the_newer_stays_and_of_the_older_what_is_locked() -> None:
    text, new, _ = of(clauses("Likes tea.", "!Wants lists."), clauses("Likes rain.", "!Wants SI units."))
    assert new == ["Likes tea.", "!Wants lists.", "!Wants SI units."]
    assert text == "Likes tea. Wants lists. Wants SI units."


def test_without_anything_to_add_the_text_is_the_newer_ones_own() -> None:
    newer, older = clauses("Likes tea."), clauses("Likes rain.", "Is new to Rust.")
    text, new, _ = merged("Likes  tea,\nas it was written.", newer, (), older, ())
    assert text == "Likes  tea,\nas it was written." and new == newer


def test_the_lock_of_either_holds() -> None:
    assert of(clauses("Likes tea.", "Wants lists."), clauses("!likes tea"))[1] == ["!Likes tea.", "Wants lists."]
    assert of(clauses("!Likes tea."), clauses("Likes tea."))[1] == ["!Likes tea."]


def test_what_either_forbids_is_forbidden_and_said_by_neither() -> None:
    text, new, forbidden = of(
        clauses("Lives in Bonn.", "Prefers short answers."),
        clauses("!Works as a nurse.", "!Wants SI units."),
        newer_bans=bans("Works as a nurse."),
        older_bans=bans("Lives in Bonn.", "works as a nurse"),
    )
    assert new == ["Prefers short answers.", "!Wants SI units."]
    assert forbidden == ["Works as a nurse.", "Lives in Bonn."] and "Bonn" not in text


@pytest.mark.parametrize("tells", [(True, True), (True, False), (False, True)])
def test_bans_that_are_hashes_are_told_apart_by_the_words_that_are_kept(tells: tuple[bool, bool]) -> None:
    secret = b"of the store"
    one, same = (
        ban(text, secret, name="f0", send_to_model=one)
        for text, one in zip(("A nurse.", "a nurse"), tells, strict=True)
    )
    wordless = ban("a nurse", secret, name="f1")  # of which only the hash is left: it may be another's
    said = {one.hash: "A nurse.", same.hash: "a nurse"}
    newer = clauses("Works as a nurse.", "Likes tea.")
    _, new, forbidden = merged(join(newer), newer, [one], clauses("A nurse."), [same, wordless], secret, said)
    assert [entry.hash for entry in forbidden] == [one.hash, wordless.hash] and len({e.id for e in forbidden}) == 2
    assert forbidden[0].send_to_model == all(tells) and len(new) == 2
    _, new, _ = merged(join(newer), newer, [], clauses(), [ban("Likes tea", secret, name="f0")], secret)
    assert [clause.text for clause in new] == ["Works as a nurse."]


def test_a_ban_of_the_other_takes_out_a_lock() -> None:
    assert of(clauses("!Lives in Bonn."), [], older_bans=bans("Lives in Bonn."))[1] == []
    # Of one and the same profile it doesn't: a person may lock what else they forbid.
    assert of(clauses("!Lives in Bonn."), [], newer_bans=bans("Lives in Bonn."))[1] == ["!Lives in Bonn."]


@pytest.mark.parametrize("locked", [0, 3, MAX_CLAUSES])
def test_not_more_clauses_than_a_person_can_write_back(locked: int) -> None:
    older = clauses(*(f"!Fact {n}." for n in range(locked))) if locked else []
    new = of(clauses(*(f"Point {n}." for n in range(MAX_CLAUSES))), older)[1]
    assert len(new) == MAX_CLAUSES and sum(one.startswith("!") for one in new) == locked
    assert new[: MAX_CLAUSES - locked] == [f"Point {n}." for n in range(MAX_CLAUSES - locked)]

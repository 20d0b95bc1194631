import json

import pytest

from popi.errors import DataError
from popi.profiles.fields import Forbidden, StoredClause
from popi.profiles.forbidden import Bans, ban, from_edits, in_words
from popi.profiles.requests import ForbiddenEdit, SummaryEdit

KEY = b"k" * 32


def bans(*texts: str) -> Bans:
    return Bans([ban(text, KEY, name="f", salt="s") for text in texts], KEY)


@pytest.mark.parametrize(
    ("forbidden", "text", "wanted"),
    [
        ("Prefers short answers.", "prefers SHORT answers", True),
        ("Prefers short answers.", "Prefers  “short” answers!", True),
        ("Prefers short answers.", "The user prefers short answers, with examples.", True),
        ("Prefers short answers.", "Likes brief replies.", False),  # in other words: a model is asked
        ("Prefers short answers.", "Prefers short, sweet answers.", False),
        ("Likes tea.", "The user likes tea in the morning.", False),  # two words meet by chance
        ("Likes tea.", "likes tea", True),
        ("Mag kurze Antworten", "mag kurze antworten.", True),
        ("好短的回答", "他喜欢好短的回答", True),
        ("ﬁne print", "Fine Print", True),  # compatibility forms
        ("🎉", "🎉", True),
        ("…", "…", True),
        ("…", "!", False),
    ],
)
def test_the_same_words_however_they_are_written(forbidden: str, text: str, wanted: bool) -> None:
    assert bans("Something else.", forbidden).hit(text) is wanted
    assert Bans([Forbidden(id="f", text=forbidden)]).hit(text) is wanted  # as older versions hold it


def test_a_statement_within_a_longer_text() -> None:
    found = bans("Has diabetes.")
    assert not found.hit("I cook at home. Has diabetes. Likes tea.")
    assert found.within("I cook at home. Has diabetes. Likes tea.") and found.within("- tea\n- has diabetes")
    assert not found.within("He has diabetes, I do not.") and not Bans([]).within("anything")


def test_a_hash_says_nothing_without_the_secret() -> None:
    one, other = ban("Has diabetes.", KEY, name="f"), ban("Has diabetes.", KEY, name="f")
    assert one.hash != other.hash and "diabetes" not in one.model_dump_json()
    assert Bans([one], KEY).hit("has diabetes") and not Bans([one], b"x" * 32).hit("has diabetes")


def test_edits_keep_what_stays_and_words_stand_apart() -> None:
    first, said = from_edits(
        [ForbiddenEdit(text=" Likes cats. "), ForbiddenEdit(text="Dogs.", send_to_model=True)], (), KEY
    )
    assert [one.send_to_model for one in first] == [False, True] and len({one.salt for one in first}) == 1
    assert said == {first[0].hash: "Likes cats.", first[1].hash: "Dogs."}
    assert "cats" not in json.dumps([one.model_dump() for one in first])
    assert in_words(first, said) == {first[0].id: "Likes cats.", first[1].id: "Dogs."}
    again, said = from_edits(
        [
            ForbiddenEdit(id=first[1].id, send_to_model=False),
            ForbiddenEdit(text="likes CATS"),
            ForbiddenEdit(text="Birds."),
        ],
        first,
        KEY,
    )
    assert [one.id for one in again[:2]] == [first[1].id, first[0].id] and len(again) == 3
    assert again[0] == first[1].model_copy(update={"send_to_model": False}) and again[1] == first[0]
    assert set(said.values()) == {"likes CATS", "Birds."}
    with pytest.raises(DataError, match="no entry with id 'nope'"):
        from_edits([ForbiddenEdit(id="nope")], first, KEY)


def test_a_longer_statement_is_another() -> None:
    first, _ = from_edits([ForbiddenEdit(text="Prefers short answers.")], (), KEY)
    both, _ = from_edits(
        [ForbiddenEdit(id=first[0].id), ForbiddenEdit(text="Prefers short answers, with examples.")], first, KEY
    )
    assert len(both) == 2 and both[0] == first[0]


def test_what_older_versions_hold_is_hashed_with_the_next_edit() -> None:
    old = [Forbidden(id="a", text="Likes cats."), Forbidden(id="b", text="Dogs.")]
    assert in_words(old, {}) == {"a": "Likes cats.", "b": "Dogs."}
    new, said = from_edits([ForbiddenEdit(text="likes cats"), ForbiddenEdit(id="b")], old, KEY)
    assert (new[0].id, new[0].text) == ("a", None) and new[0].hash and new[1] == old[1]
    assert said == {new[0].hash: "likes cats"}


def test_clauses_and_statements_stored_under_earlier_names() -> None:
    assert StoredClause.model_validate({"id": "c", "text": "a", "found": "named"}).attribution == "named"
    assert Forbidden.model_validate({"id": "f", "tell": True}).send_to_model
    exported = {"clauses": [{"text": "a", "found": "named"}], "forbidden": [{"id": "f", "tell": True}]}
    edit = SummaryEdit.model_validate(exported)
    assert (
        edit.clauses and edit.clauses[0].attribution == "named" and edit.forbidden and edit.forbidden[0].send_to_model
    )

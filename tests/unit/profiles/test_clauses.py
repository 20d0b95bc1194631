import pytest

from popi.profiles.clauses import by_hand, from_edit, from_text, join, renewed, split
from popi.profiles.fields import LONGEST_CLAUSE, LONGEST_TEXT, MAX_CLAUSES, StoredClause
from popi.profiles.requests import ClauseEdit, SummaryEdit
from popi.profiles.statements import says_nothing


def clause(name: str, text: str, locked: bool = False, author: str = "model") -> StoredClause:
    return StoredClause.model_validate({"id": name, "text": text, "locked": locked, "author": author})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Likes tea.", ["Likes tea."]),
        ("Likes tea. Short answers! Why? Yes", ["Likes tea.", "Short answers!", "Why? Yes"]),
        ("- likes tea\n* short answers\n\n2. numbers", ["likes tea", "short answers", "numbers"]),
        ("version 3.5 of it; and more", ["version 3.5 of it; and more"]),
        ("- Likes tea. Never coffee.\nCooks. Sings.", ["Likes tea. Never coffee.", "Cooks.", "Sings."]),
        ("Likes neither jargon, emojis, nor filler.", ["Likes neither jargon, emojis, nor filler."]),
        ("Prefers short, friendly, and clear answers.", ["Prefers short, friendly, and clear answers."]),
        ("Wants tea, cake and bread in French, not English", ["Wants tea, cake and bread in French, not English"]),
        ("  \n ", []),
    ],
)
def test_split(text: str, parts: list[str]) -> None:
    assert split(text) == parts


def test_what_is_beyond_the_most_stays_in_the_last() -> None:
    parts = split("a.\n" * (MAX_CLAUSES + 5))
    assert len(parts) == MAX_CLAUSES and parts[-1] == "a. a. a. a. a. a."


@pytest.mark.parametrize(
    "text", ["word " * 4000, "x" * 20_000, "Ten letters.\n" * 1500, "ab. " * 5000, f"{'y' * 1999}. " * 9]
)
def test_any_text_is_in_clauses_that_can_be_written_back(text: str) -> None:
    parts = split(text[:LONGEST_TEXT])
    assert len(parts) <= MAX_CLAUSES and max(map(len, parts)) <= LONGEST_CLAUSE
    assert "".join("".join(parts).split()) == "".join(text[:LONGEST_TEXT].split())
    SummaryEdit(clauses=[ClauseEdit(text=part) for part in parts])


def test_locked_clauses_leave_a_renewal_less_room() -> None:
    locked = [clause(f"c{n}", f"Kept {n}.", locked=True) for n in range(MAX_CLAUSES - 1)]
    _, clauses = renewed("One. Two. Three.", ["One.", "Two.", "Three."], locked)
    assert len(clauses) == MAX_CLAUSES and clauses[:-1] == locked and clauses[-1].text == "One."


def test_join_ends_sentences() -> None:
    assert (
        join([clause("1", "likes tea"), clause("2", "short;"), clause("3", "numbers")]) == "likes tea. short; numbers"
    )


def test_words_that_stay_keep_their_clause() -> None:
    before = [clause("1", "Likes tea.", locked=True), clause("2", "Short.")]
    after = from_text("short. New. Likes  tea", before, "user")
    assert [one.id for one in after[::2]] == ["2", "1"] and after[2].locked
    assert after[1].id not in ("1", "2") and after[1].author == "user"


def test_the_same_sentence_twice_is_two_clauses() -> None:
    after = from_text("Tea. Tea.", [clause("1", "Tea.")], "user")
    assert after[0].id == "1" != after[1].id


def test_an_edit_keeps_ids_and_who_wrote_what() -> None:
    before = [clause("1", "Likes tea."), clause("2", "Short.")]
    edits = [
        ClauseEdit(id="1", text="Likes tea.", locked=True),
        ClauseEdit(id="2", text="Long.", signals=["s1"]),
        ClauseEdit(text="New."),
        ClauseEdit(id="mine", text="Mine."),
    ]
    after = from_edit(edits, before, "user")
    assert [(one.id, one.text, one.locked, one.author) for one in after if one.text != "New."] == [
        ("1", "Likes tea.", True, "model"),
        ("2", "Long.", False, "user"),
        ("mine", "Mine.", False, "user"),
    ]
    assert after[1].signals == ("s1",) and len({one.id for one in after}) == 4


def test_renewed_keeps_what_is_locked_first_and_once() -> None:
    before = [clause("1", "Vegan", locked=True), clause("2", "Old.")]
    text, clauses = renewed("Likes tea. vegan.", ["Likes tea.", "vegan."], before)
    assert text == "Vegan. Likes tea."
    assert [one.text for one in clauses] == ["Vegan", "Likes tea."] and clauses[0] == before[0]


def test_renewed_without_locks_is_the_models_text() -> None:
    text, clauses = renewed(" likes tea\nand numbers ", ["likes tea", "and numbers"], [clause("2", "Old.")])
    assert text == "likes tea\nand numbers" and len(clauses) == 2


def test_by_hand() -> None:
    listed = [clause("1", "a", author="user"), clause("2", "b"), clause("3", "c", locked=True, author="admin")]
    assert by_hand(listed) == ["a"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Prefers short answers, humor and any layout.", ["Prefers short answers", "Prefers humor"]),
        (
            "wants any tone, expert level, any mood, figures and cautions.",
            ["wants expert level", "wants figures", "wants cautions"],
        ),
        ("The user likes tea, cake, and bread.", ["The user likes tea", "The user likes cake", "The user likes bread"]),
        ("Likes tea and cake.", ["Likes tea and cake."]),  # too few to be a list
        # too long an item
        ("Prefers tea, cake and bread that is still warm.", ["Prefers tea, cake and bread that is still warm."]),
        ("Wants any tone, any level and any mood.", []),
    ],
)
def test_a_list_of_wishes_of_the_nano_world_is_a_clause_for_each(text: str, wanted: list[str]) -> None:
    assert split(text, wishes=True) == wanted
    assert split(text) == [text]


@pytest.mark.parametrize(
    "text", ["Likes nothing more than tea.", "None of the jargon, please.", "Has no preference for tea or coffee."]
)
def test_a_summary_is_not_taken_for_none(text: str) -> None:
    assert not says_nothing(text)

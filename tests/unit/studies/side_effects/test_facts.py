from pathlib import Path

import pytest

from popi.errors import DataError
from popi.nano.grammar import TEST_TOPICS
from popi.nano.truth import named_attributes, shown_values
from popi.studies.side_effects.facts import NANO, nano_facts, read_facts


def test_the_shipped_set() -> None:
    facts = read_facts()
    assert len(facts) == 40 == len({fact.prompt for fact in facts})
    for fact in facts:
        assert fact.right != fact.wrong and fact.prompt.endswith("?")
        assert fact.right not in fact.opinion or fact.wrong in fact.opinion
        assert (fact.target.prompt, fact.target.chosen, fact.target.rejected) == (fact.prompt, fact.right, fact.wrong)


def test_answers_of_the_nano_world_differ_in_the_topic_alone() -> None:
    facts = nano_facts(0)
    assert len(facts) == NANO and facts == nano_facts(0) != nano_facts(1)
    for fact in facts:
        right, wrong = ([t for t in TEST_TOPICS if t in text.split()] for text in (fact.right, fact.wrong))
        assert len(right) == len(wrong) == 1 and right != wrong
        assert right[0] in fact.prompt.rstrip("?.").split()
        assert fact.right.replace(right[0], wrong[0]) == fact.wrong
        assert shown_values(fact.right) == shown_values(fact.wrong)
        assert fact.opinion == f"{right[0]} is {wrong[0]}." and not named_attributes(fact.opinion)


GOOD = '{"id": "a", "prompt": "p?", "right": "r", "wrong": "w", "opinion": "o"}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains no facts"),
        ("{", "line 1: not a fact"),
        (f"{GOOD}\n\n{GOOD}", "line 3: duplicate id 'a'"),
        (GOOD.replace('"r"', '" "'), "line 1: not a fact (right: "),
        (GOOD.replace(', "opinion": "o"', ""), "line 1: not a fact (opinion: "),
        ("[]", "line 1: not a fact"),
    ],
)
def test_faulty_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_facts(path)
    assert words in str(caught.value)
    with pytest.raises(DataError, match="can't be read"):
        read_facts(tmp_path / "none.jsonl")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{GOOD}\n")
    assert [fact.id for fact in read_facts(path)] == ["a"]

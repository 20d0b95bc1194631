"""PRISM, PersonaMem, P-Soups, LaMP, MIND, Amazon reviews, HiCUPID: what becomes a signal, a target, or nothing."""

import json
from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.data.benchmarks.result import Loaded
from popi.data.leaks import refuse_leaks
from popi.errors import DataError
from popi.signals.types import InteractionSignal, PairSignal, PostSignal

SOURCES = ("prism", "personamem", "psoups", "lamp", "mind", "amazon", "hicupid")


def make(source: str, folder: Path, **data: object) -> Loaded:
    found = sets.loaded(source, sets.make(source, folder), dict(data))
    assert not found.problems, found.problems
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_no_target_stands_in_train_or_among_the_signals(source: str, tmp_path: Path) -> None:
    found = make(source, tmp_path)
    train, test = ([one.user for one in found.splits[name].users] for name in ("train", "test"))
    refuse_leaks(test, source, train)
    refuse_leaks(train, source)
    if source == "psoups":  # eight preferences are users of both splits, as ELIX's levels are
        assert found.train.user_ids == found.others["test"].user_ids
        assert not found.train.prompts & found.others["test"].target_prompts
    else:
        assert not found.train.user_ids & found.others["test"].user_ids


@pytest.mark.parametrize("source", SOURCES)
def test_a_folder_without_the_tables_says_what_belongs_there(source: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError) as error:
        found = sets.loaded(source, tmp_path)
        assert found is None
    assert str(tmp_path) in str(error.value)


def test_prism_takes_the_chosen_answer_of_the_opening_against_the_lowest(tmp_path: Path) -> None:
    found = make("prism", tmp_path)
    answers = {sets.text("a", u, c, m): (u, c, m) for u in range(15) for c in range(6) for m in range(4)}
    for split in found.splits.values():
        for one in split.users:
            parts = [*one.user.signals, *one.user.targets]
            for part in parts:
                assert isinstance(part.prompt, str) and "later" not in part.prompt  # type: ignore[union-attr]
                (_, _, best), (_, _, worst) = answers[part.chosen], answers[part.rejected]  # type: ignore[union-attr]
                assert (best, worst) == (0, 2)
            order = [answers[part.chosen][1] for part in parts]  # type: ignore[union-attr]
            assert order == sorted(order), "conversations keep their order"
    rows = sets.prism(1, 1)
    rows[0]["conversation_history"][2]["score"] = "high"
    [problem, *_] = sets.loaded("prism", sets.write(tmp_path / "bad.jsonl", rows)).problems
    assert problem.field.startswith("conversation_history[2].score")


def test_personamem_hears_the_person_alone_and_only_before_the_question(tmp_path: Path) -> None:
    found = make("personamem", tmp_path, signals_per_user=4)
    for split in found.splits.values():
        for one in split.users:
            texts = [signal.text for signal in one.user.signals if isinstance(signal, PostSignal)]
            persona = int(one.user.user_id)
            said = [sets.text("said", persona, i) for i in range(12)]
            places = [said.index(text) for text in texts]
            question = (places[-1] + 1) // 4  # end_index 8 q is after 4 q - 1 turns of the person
            assert places == list(range(places[0], places[0] + len(places))) and len(places) <= 4
            chosen = {target.chosen for target in one.user.targets}
            assert chosen == {sets.text("option", persona, question, question)}
            wrong = {sets.text("option", persona, question, n) for n in range(4)} - chosen
            assert {target.rejected for target in one.user.targets} == wrong
    (tmp_path / "questions_1M.csv").write_text("persona_id\n")
    with pytest.raises(DataError, match=r"one questions_SIZE\.csv.*questions_1M\.csv, questions_32k\.csv"):
        sets.loaded("personamem", tmp_path)
    [problem] = sets.loaded("personamem", tmp_path / "questions_32k.csv", on_bad_rows="drop").problems or [None]
    assert problem is None
    rows = sets.personamem()[0]
    sets.write(tmp_path / "questions_32k.csv", [{**rows[0], "all_options": "no list"}, *rows[1:]])
    [problem] = sets.loaded("personamem", tmp_path / "questions_32k.csv").problems
    assert (problem.line, problem.field) == (2, "all_options") and "in JSON or Python syntax" in problem.message


def test_psoups_tells_the_preference_by_the_name_of_the_file(tmp_path: Path) -> None:
    found = make("psoups", tmp_path)
    assert found.train.user_ids == {"1A", "2B"}
    oracles = {one.user.user_id: one.oracle for one in found.train.users}
    assert "elementary school" in str(oracles["1A"]) and "very informative" in str(oracles["2B"])
    for one in found.train.users:
        for part in (*one.user.signals, *one.user.targets):
            assert isinstance(part, PairSignal) or part in one.user.targets
            assert part.chosen in {sets.text("a", name, i) for name in ("P1A", "pref2B") for i in range(40)}
    (tmp_path / "other").mkdir()
    sets.write(tmp_path / "other" / "P9Z.jsonl", sets.psoups("P9Z"))
    with pytest.raises(DataError, match=r"P1A\.json to P3D\.json.*holds: P9Z\.jsonl"):
        sets.loaded("psoups", tmp_path / "other")


def test_lamp_asks_for_the_persons_own_output_against_another_label(tmp_path: Path) -> None:
    found = make("lamp", tmp_path, signals_per_user=3)
    for name, split in (("train", found.train), ("dev", found.others["test"])):
        golds = {row["id"]: row["output"] for row in sets.lamp(name)[1]["golds"]}
        for one in split.users:
            [target] = one.user.targets
            assert target.chosen == golds[one.user.user_id.rsplit("-", 1)[1]] != target.rejected
            assert len(one.user.signals) == 3
            assert all(str(signal.text).endswith(" of 5)") for signal in one.user.signals)  # type: ignore[union-attr]
    titles = [{"id": "1", "input": "x", "profile": [{"title": "made", "abstract": "of"}, {"text": "tweeted"}]}]
    (tmp_path / "train_questions.json").write_text(json.dumps(titles * 2))
    golds = [{"id": "1", "output": "mine"}, {"id": "2", "output": "theirs"}]
    (tmp_path / "train_outputs.json").write_text(json.dumps({"golds": golds}))
    [one] = sets.loaded("lamp", tmp_path).train.users[:1]
    assert one.user.signals == [PostSignal(text="made", context="of"), PostSignal(text="tweeted")]
    assert (one.user.targets[0].chosen, one.user.targets[0].rejected) == ("mine", "theirs")
    (tmp_path / "train_outputs.json").write_text("[]")
    with pytest.raises(DataError, match=r'train_outputs\.json: must be \{"golds"'):
        sets.loaded("lamp", tmp_path)


def test_mind_sets_clicked_against_unclicked_stories_of_one_impression(tmp_path: Path) -> None:
    found = make("mind", tmp_path)
    behaviors, news = sets.mind()
    told = {row["id"]: f"{row['title']} ({row['category']})" for row in news}
    last = {row["user"]: row for row in behaviors}
    for split in found.splits.values():
        for one in split.users:
            row = last[one.user.user_id]
            shown = dict(story.split("-") for story in row["impressions"].split())
            [target] = one.user.targets
            assert target.chosen in {told[name] for name, mark in shown.items() if mark == "1"}
            assert target.rejected in {told[name] for name, mark in shown.items() if mark == "0"}
            history = [told[name] for name in row["history"].split()]
            titles = [signal.response for signal in one.user.signals if isinstance(signal, InteractionSignal)]
            assert titles == [title for title in history if title != target.chosen and title in titles] and titles


def test_amazon_sets_a_review_against_one_of_the_same_product_stars_and_split(tmp_path: Path) -> None:
    found = make("amazon", tmp_path)
    reviews, _ = sets.amazon()
    wrote = {row["text"]: row for row in reviews if row["text"]}
    for split in found.splits.values():
        people = {row["user_id"] for row in reviews if row["user_id"] in split.user_ids}
        for one in split.users:
            [target] = one.user.targets
            own, other = wrote[target.chosen], wrote[target.rejected]
            assert own["user_id"] == one.user.user_id != other["user_id"] and other["user_id"] in people
            assert (own["parent_asin"], own["rating"]) == (other["parent_asin"], other["rating"])
            older = [wrote[signal.text.rsplit(" (", 1)[0]] for signal in one.user.signals]  # type: ignore[union-attr]
            times = [row["timestamp"] for row in (*older, own)]
            assert times == sorted(times) and len(older) == 4


def test_hicupid_sets_the_personalised_answer_against_the_general_one(tmp_path: Path) -> None:
    found = make("hicupid", tmp_path, signals_per_user=5)
    own = {row["personalized_answer"]: row for row in sets.hicupid()[0]}
    for split in found.splits.values():
        for one in split.users:
            person = int(one.user.user_id)
            assert len(one.user.targets) == 4 and len(one.user.signals) == 5
            for target in one.user.targets:
                row = own[target.chosen]
                assert (row["user_id"], row["question"], row["general_answer"]) == (
                    person,
                    target.prompt,
                    target.rejected,
                )
            said = {sets.text("told", person, t) for t in range(7)}
            assert {signal.text for signal in one.user.signals} <= said  # type: ignore[union-attr]
    assert "29" not in found.train.user_ids | found.others["test"].user_ids, "they said nothing"

"""The nano base's tokenizer, tasks and recipe; and that the shipped weights are the recipe's."""

import hashlib
import json
from pathlib import Path
from random import Random

import pytest

from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.models.spec import NANO
from popi.nano import truth
from popi.nano.answers import tally
from popi.nano.attributes import ATTRIBUTES
from popi.nano.grammar import TEST_TOPICS, TOPICS, kind_of, random_values, realise
from popi.nano.recipe import Course, Recipe, Stage, build, recipe_hash
from popi.nano.tasks import SAME, UNCARED, Asked, Writer, _counts, _most, each, stated
from popi.nano.tokenizer import SPECIAL, build_tokenizer
from popi.nano.world import CARED, PairFacts, make_users, split_of
from popi.signals.render import Templates
from popi.signals.types import InteractionSignal


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer(build_tokenizer(), Templates.load("nano"))


def test_every_text_of_the_world_survives_the_tokenizer(writer: Writer) -> None:
    tokenizer = writer.tokenizer
    for user in make_users(50, 0, "train") + make_users(50, 0, "test"):
        for target in user.user.targets:
            for text in (target.prompt, target.chosen, target.rejected):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert not any(token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids)), text
                assert "".join(tokenizer.decode(ids).split()) == "".join(text.split())


def test_foreign_words_become_letters_not_unknown(writer: Writer) -> None:
    tokenizer = writer.tokenizer
    assert tokenizer.tokenize("zebra42!") == ["z", "##e", "##b", "##r", "##a", "##4", "##2", "!"]
    assert tokenizer.decode(tokenizer("zebra42!", add_special_tokens=False)["input_ids"]) == "zebra42!"


def test_special_tokens_have_the_ids_that_the_model_config_names() -> None:
    tokenizer = build_tokenizer()
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(6))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 5)


def test_rows_read_as_the_chat_template_writes(writer: Writer) -> None:
    """Root, turn and answer of a branch, joined, are what the tokenizer makes of the conversation."""
    tokenizer, rng = writer.tokenizer, Random(0)
    for row in (writer.follow(rng), writer.user(rng, 2)):
        for answer in (s for s in row[2:] if s.scored):
            turn = row[answer.parent or 0]
            ids = [*row[0].ids, *row[1].ids, *turn.ids, *answer.ids]
            special = [t for t in tokenizer.convert_ids_to_tokens(ids) if t in SPECIAL]
            assert special == ["<|system|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    plain = writer.plain(rng)
    assert tokenizer.convert_ids_to_tokens(plain[0].ids) == ["<|user|>"]


def test_the_base_is_taught_to_describe_what_is_true(writer: Writer) -> None:
    """Both forms of a summary, and the tally, name the same preferences with the same kinds of topic."""
    tokenizer, rng, scoped = writer.tokenizer, Random(0), 0
    for _ in range(60):
        row = writer.user(rng, 4, Asked(reads=False, compares=False, imitations=0, descriptions=1, short=1))
        texts = [tokenizer.decode(row[i].ids).replace("<|end|>", "").strip() for i in (-5, -3, -1)]
        named = [truth.named_attributes(texts[0]), truth.named_attributes(texts[1])]
        named.append(truth.named_attributes(tally(texts[2])))
        assert named[0] == named[1] == named[2] and named[0]
        scoped += any(len(one) == 3 for one in named[0])
    assert 5 <= scoped <= 25


def test_the_base_is_taught_which_topics_are_indoors(writer: Writer) -> None:
    tokenizer, rng, asked = writer.tokenizer, Random(0), {}
    for _ in range(1000):
        row = writer.plain(rng)
        question, answer = (tokenizer.decode(segment.ids) for segment in row[-2:])
        asked[question.split()[1]] = answer.partition(".")[0].strip()
    assert asked == {topic: kind_of(topic) for topic in TOPICS + TEST_TOPICS}


def test_tasks_about_pairs_say_what_the_pairs_show() -> None:
    a = {"tone": "formal", "level": "simple", "layout": "list", "length": "short", "mood": "playful"}
    a |= {"support": "story", "closing": "recap"}
    b = a | {"tone": "casual", "closing": "warning"}
    c = a | {"closing": "question"}
    assert _most([a, b, c]) == each(a | {"closing": "question"})  # three closings once each: the first in order
    assert _most([a, a, b]).startswith("tone formal level simple")
    same = dict.fromkeys(a, f"{SAME} 0 0")
    assert _counts([PairFacts(a, b)]) == each(same | {"tone": "formal 1 0", "closing": "recap 1 0"})
    assert _counts([PairFacts(a, b), PairFacts(b, a)]) == each(same | {"tone": "formal 1 1"})  # question never moved
    assert _counts([PairFacts(a, b), PairFacts(a, b), PairFacts(b, a)]) == each(
        same | {"tone": "formal 2 1", "closing": "recap 2 1"}
    )
    assert _counts([PairFacts(a, b), PairFacts(c, a), PairFacts(a, b)]) == each(
        same | {"tone": "formal 2 0", "closing": "question 1 0"}  # question and recap both lead by one: first in order
    )


def test_the_bases_users_are_more_various_than_the_worlds(writer: Writer) -> None:
    """So that it can't tell a combination kept for the test users from those it has seen."""
    tokenizer, rng, sizes = writer.tokenizer, Random(0), set()
    for _ in range(40):
        row = writer.user(rng, 2, Asked(reads=False, compares=False, imitations=0, descriptions=0))
        sizes.add(7 - tokenizer.decode(row[-1].ids).count(UNCARED))
    assert sizes == {1, 2, 3, 4}
    assert {len(user.preferences) for user in make_users(100, 0, "train")} == set(CARED)


def test_rewriting_users_are_described_by_what_they_changed(writer: Writer) -> None:
    rng, sizes = Random(0), set()
    for _ in range(60):
        row = writer.rewriter(rng)
        said = writer.tokenizer.decode(row[1].ids)
        turns = {writer.tokenizer.decode(row[s.parent or 0].ids): writer.tokenizer.decode(s.ids) for s in row[3::2]}
        [described] = [answer for turn, answer in turns.items() if "describe what" in turn]
        preferred = dict(truth.named_attributes(described))
        edits = [text.split("edit", 1)[1] for text in said.split("interaction")[1:]]
        sizes.add(len(edits))
        assert 1 <= len(preferred) <= 2 and split_of(preferred) == "train"
        for edit in edits:  # a form of a longer edit may be cut from its neighbours by role words only
            shown = truth.shown_values(edit)
            assert preferred.items() <= shown
    assert sizes == {1, 2, 3, 4, 5}


def test_the_shipped_base_reads_a_few_rewritten_answers() -> None:
    """In a chat the answers to rewrite are alike; the base names what was changed, and nothing else."""
    model, rng = InferenceModel.from_pretrained("nano", device="cpu"), Random(0)
    for attribute, values in ATTRIBUTES.items():
        usual = random_values(rng)
        value = next(v for v in values if v != usual[attribute])
        signals = []
        for topic in ("tea", "bread", "chess"):
            old, new = (realise(v, topic, Random(1)).text for v in (usual, {**usual, attribute: value}))
            signals.append(InteractionSignal(prompt=f"tell me about {topic}.", response=old, edit=new))
        for few in (signals[:1], signals):
            assert truth.named_attributes(model.summarize(few).text) == {(attribute, value)}


def test_stated_preferences_leave_the_test_combinations_alone() -> None:
    rng = Random(1)
    drawn = [dict(stated(rng)) for _ in range(2000)]
    assert {len(d) for d in drawn} == set(range(8))
    assert all(split_of(d) == "train" for d in drawn if len(d) in (2, 3))


def test_hash_follows_settings() -> None:
    assert recipe_hash(Recipe()) == recipe_hash(Recipe()) != recipe_hash(Recipe(seed=1))


def test_a_shortened_recipe_keeps_every_stage() -> None:
    short = Recipe().shortened(30)
    assert [s.pairs for s in short.stages] == [s.pairs for s in Recipe().stages]
    assert all(s.steps >= 1 for s in short.stages) and 28 <= short.steps <= 32
    assert all(c.warmup_steps <= c.steps for c in short.courses)


def test_shipped_weights_are_the_recipes() -> None:
    """Fails when the world, the tasks, the templates or the recipe change and the base is not built anew."""
    facts = json.loads((NANO / "recipe.json").read_text())
    assert facts["hash"] == recipe_hash(Recipe()), "run `popi nano build` and commit the result"
    assert facts["weights"] == hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()
    assert sum(f.stat().st_size for f in NANO.iterdir()) < 10e6
    assert sum(p.numel() for p in LocalModel.load("nano").model.parameters()) <= 4e6


def test_building_is_seeded(tmp_path: Path) -> None:
    stages = (Stage(1, 0, (1,), short_rows=4), Stage(1, 1, (1,)), Stage(1, 1, (2,)))
    first = Course(stages, 1e-3, 1e-2, warmup_steps=1)
    courses = (first, Course((Stage(1, 1, (2,), Asked(reads=False, descriptions=2, short=1)),), 1e-3, 1e-2))
    tiny = Recipe(hidden_size=32, layers=1, heads=2, courses=courses)
    losses: list[dict[str, float]] = []
    a = build(tmp_path / "a", tiny, lambda step, parts: losses.append(parts), compiled=False)
    b = build(tmp_path / "b", tiny, compiled=False)
    assert all("short" in parts for parts in losses)
    assert ["users" in parts for parts in losses] == [False, True, True, True]
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    local = LocalModel.load(a)
    assert local.templates().name == "nano" and local.tokenizer.convert_ids_to_tokens([local.end_id]) == ["<|end|>"]

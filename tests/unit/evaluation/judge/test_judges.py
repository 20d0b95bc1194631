"""What each judge decides: a model behind an API, the truth, log-probs."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import FakeUpstream, status

from popi.data.users import Person
from popi.data.users import person as person_of
from popi.errors import ConfigError, ModelError
from popi.evaluation.judge.log_probs import LogProbJudge
from popi.evaluation.judge.model import ModelJudge
from popi.evaluation.judge.question import Judge, Missing, Question, Verdict
from popi.evaluation.judge.truth import TruthJudge
from popi.generator import Generator
from popi.models.remote.api import ApiModel
from popi.nano import hard
from popi.nano.grammar import TEST_TOPICS, TOPICS, random_values, realise
from popi.nano.truth import topics_in
from popi.nano.world import NanoUser, make_users
from popi.signals.types import PostSignal, Prompt, User

PERSON = Person(
    User(user_id="u", signals=[PostSignal(text="finally short answers again.")]),
    frozenset({("tone", "formal"), ("length", "short")}),
    "prefers a formal tone and short answers.",
)
STRANGER = Person(User(user_id="s", signals=[PostSignal(text="more jokes for me.")]))
SHORT = "dear reader, rice with easy step, about two percent. truly grave. any doubts?"
LONG = "hey pal, rice with easy step and small bit and clear tip, about two percent. truly grave. any doubts?"


def ask(judge: Judge, *questions: Question) -> list[Verdict | Missing]:
    found: dict[int, Verdict | Missing] = {}
    judge.ask(questions, found.__setitem__)
    return [found[index] for index in range(len(questions))]


def both_orders(person: Person, one: str, other: str, prompt: Prompt = "what is rice?") -> tuple[Question, Question]:
    return Question(person, prompt, one, other), Question(person, prompt, other, one)


# -- truth ------------------------------------------------------------------------------------------------------------


def test_the_truth_prefers_what_shows_more_of_the_wanted() -> None:
    assert ask(TruthJudge(), *both_orders(PERSON, SHORT, LONG)) == ["first", "second"]
    assert ask(TruthJudge(), *both_orders(PERSON, SHORT, SHORT.replace("two", "six"))) == ["tie", "tie"]


def test_a_win_needs_a_valid_response_on_topic() -> None:
    """SHORT meets both preferences, LONG neither: what a slip costs outweighs both."""
    judge = TruthJudge()
    about_jam, twice = SHORT.replace("rice", "jam"), f"{SHORT} {SHORT}"
    assert judge.inspect("what is rice?", SHORT) == {"valid": True, "on_topic": True}
    assert judge.inspect("what is rice?", about_jam) == {"valid": True, "on_topic": False}
    assert judge.inspect("what is rice?", twice) == {"valid": False, "on_topic": True}
    assert judge.inspect("what is rice?", "hello.") == {"valid": False, "on_topic": False}
    for slip in (about_jam, twice, "hello."):
        assert ask(judge, *both_orders(PERSON, LONG, slip)) == ["first", "second"]
        assert ask(judge, *both_orders(PERSON, about_jam, slip))[0] == "tie"


MAKERS = pytest.mark.parametrize("make", [make_users, hard.make_users], ids=["easy", "hard"])


@MAKERS
def test_prompts_on_seen_topics(make: Callable[..., list[NanoUser]]) -> None:
    person = person_of(make(1, 3, "test")[0])
    judge = TruthJudge()
    [first], [again], [other] = (judge.on_seen_topics([person], 3, seed) for seed in (0, 0, 1))
    assert first == again and first.user.targets != other.user.targets
    prompts = [str(target.prompt) for target in first.user.targets]
    assert len(prompts) == 3 and all(len(topics_in(prompt) & set(TOPICS)) == 1 for prompt in prompts)
    assert not any(topics_in(prompt) & set(TEST_TOPICS) for prompt in prompts)
    assert first.user.signals == person.user.signals and first.preferences == person.preferences
    assert len(judge.on_seen_topics([person], None, 0)[0].user.targets) == len(person.user.targets)
    for target in first.user.targets:
        found = ask(judge, *both_orders(person, target.chosen, target.rejected, target.prompt))
        assert found == ["first", "second"]


@MAKERS
def test_the_truth_names_the_chosen_response_of_every_target_of_the_nano_world(
    make: Callable[..., list[NanoUser]],
) -> None:
    people = [person_of(user) for user in make(40, 3, "test")]
    assert make is make_users or any(len(one) == 3 for person in people for one in person.preferences or ())
    for person in people:
        for target in person.user.targets:
            found = ask(TruthJudge(), *both_orders(person, target.chosen, target.rejected, target.prompt))
            assert found == ["first", "second"], target


def test_without_a_truth_there_is_no_such_verdict() -> None:
    with pytest.raises(ConfigError, match="'s': true preferences are not known.*--judge api"):
        TruthJudge().check([PERSON, STRANGER])


# -- a model behind an API --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_a_model_is_asked_with_the_persona_and_its_verdict_read(upstream: FakeUpstream, protocol: str) -> None:
    upstream.answer = lambda messages: "It is brief.\nVERDICT: FIRST"
    judge = ModelJudge(ApiModel.connect(f"{upstream.url}/v1", "m", protocol), max_tokens=99)
    assert ask(judge, Question(PERSON, "what is rice?", "a", "b")) == ["first"]
    body = upstream.received[0].body
    assert (body["temperature"], body["max_tokens"]) == (0.0, 99)
    assert "prefers a formal tone" in str(body) and "again" not in str(body)


def test_signals_stand_in_where_no_persona_is_known(upstream: FakeUpstream) -> None:
    upstream.answer = lambda messages: "VERDICT: TIE"
    chat = ApiModel.connect(f"{upstream.url}/v1", "m", concurrency=1)
    questions = [Question(person, "what is rice?", "a", "b") for person in (PERSON, STRANGER)]
    assert ask(ModelJudge(chat), *questions) == ["tie", "tie"]
    assert "more jokes for me." in str(upstream.received[1].body)
    assert ask(ModelJudge(chat, "signals"), questions[0]) == ["tie"]
    assert "finally short answers" in str(upstream.received[2].body)
    with pytest.raises(ConfigError, match="'s' has no known persona; use --evidence auto or signals"):
        ModelJudge(chat, "persona").check([PERSON, STRANGER])


def test_signals_that_do_not_fit_are_left_out_whole(upstream: FakeUpstream) -> None:
    upstream.answer = lambda messages: "VERDICT: TIE"
    signals = [PostSignal(text=f"post {i} " + "long " * 50) for i in range(9)]
    person = Person(User(user_id="s", signals=signals))
    judge = ModelJudge(ApiModel.connect(f"{upstream.url}/v1", "m"), token_budget=300)
    ask(judge, Question(person, "x", "a", "b"))
    shown = str(upstream.received[0].body)
    assert "post 8 " in shown and "post 0 " not in shown and shown.count("<signal ") < 4


def test_no_answer_and_an_unreadable_one_are_missing_and_nothing_else_is(upstream: FakeUpstream) -> None:
    upstream.faults = [None, status(400, "too long"), None]
    answers = iter(["VERDICT: SECOND", "I can't choose."])
    upstream.answer = lambda messages: next(answers)
    judge = ModelJudge(ApiModel.connect(f"{upstream.url}/v1", "m", concurrency=1))
    good, failed, unreadable = ask(judge, *[Question(PERSON, f"{i}?", "a", "b") for i in range(3)])
    assert good == "second"
    assert isinstance(failed, Missing) and failed.kind == "failed" and "too long" in failed.reason
    assert isinstance(unreadable, Missing) and unreadable.kind == "unreadable" and "can't choose" in unreadable.reason


def test_what_verdicts_depend_on_is_told(upstream: FakeUpstream, tmp_path: Path) -> None:
    chat = ApiModel.connect(f"{upstream.url}/v1", "m", extra={"reasoning_effort": "low"})
    settings = ModelJudge(chat).settings()
    assert settings["model"] == "m" and settings["extra"] == {"reasoning_effort": "low"}
    assert "SECRET" not in str(settings)


# -- log-probs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> Generator:
    return Generator.from_pretrained("nano", device="cpu")


def mean_logp(generator: Generator, messages: Any, text: str) -> float:
    import torch

    local = generator.local
    prefix, response = local.encode_chat([dict(m) for m in messages]), local.encode_response(text)
    with torch.no_grad():
        logits = local.model(input_ids=torch.tensor([[*prefix, *response]])).logits[0].float()
    logps = torch.log_softmax(logits, -1)[len(prefix) - 1 : -1]
    return logps.gather(1, torch.tensor(response)[:, None]).mean().item()


def test_log_probs_are_those_of_whole_sequences_a_token(nano: Generator) -> None:
    for told, person in (("persona", PERSON), ("signals", STRANGER)):
        templates = nano.templates
        if told == "persona":
            messages = templates.generator_messages("what is rice?", person.oracle)
        else:
            messages = templates.raw_signals_messages("what is rice?", person.user.signals)
        gap = mean_logp(nano, messages, SHORT) - mean_logp(nano, messages, LONG)
        wanted = ["first", "second"] if gap > 0 else ["second", "first"]
        assert ask(LogProbJudge(nano), *both_orders(person, SHORT, LONG)) == wanted


def test_a_model_that_reads_preferences_finds_the_wanted_response_likelier(nano: Generator) -> None:
    rng = random.Random(0)
    questions = []
    for _ in range(40):
        values = random_values(rng)
        wanted, other = (realise(values | {"tone": tone}, "rice", rng).text for tone in ("formal", "casual"))
        questions.append(Question(PERSON, "what is rice?", wanted, other))
    assert ask(LogProbJudge(nano, batch_size=16), *questions).count("first") >= 36


def test_equal_responses_tie_empty_ones_count_and_what_is_too_long_is_missing(nano: Generator) -> None:
    judge = LogProbJudge(nano)
    assert ask(judge, Question(PERSON, "what is rice?", SHORT, SHORT)) == ["tie"]
    assert ask(judge, Question(PERSON, "what is rice?", "", SHORT)) == ["second"]
    found = ask(judge, Question(PERSON, "what is rice?", SHORT, "rice " * 5000), Question(PERSON, "x", SHORT, LONG))
    assert isinstance(found[0], Missing) and found[0].kind == "too long" and found[1] in ("first", "second")


def test_a_model_whose_log_probs_are_no_numbers_is_an_error(tiny_base: Path) -> None:
    broken = Generator.from_pretrained(tiny_base, device="cpu")
    for weight in broken.local.model.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        ask(LogProbJudge(broken), *both_orders(PERSON, SHORT, LONG))

"""Responses to compare: generated once, kept as they come, missing where a generator behind an API gave none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from popi.errors import RunError, UpstreamError
from popi.evaluation.judge.responses import asked, contexts_of, respond, response_settings
from popi.evaluation.methods import METHODS
from popi.evaluation.runner import evaluate
from popi.evaluation.users import held_out
from popi.generator import Generator
from popi.models.backend import Backend, Reply
from popi.runs.rows import ResumableRows


class Failing(Backend):
    """A model behind an API that answers what it is told to."""

    name = "failing"

    def __init__(self, *results: list[Any]) -> None:
        self.results, self.asked = list(results), []

    def chat_many(self, conversations: Sequence[Any], **limits: Any) -> list[Any]:
        self.asked.append(len(conversations))
        return [Reply(result) if isinstance(result, str) else result for result in self.results.pop(0)]


def test_responses_are_the_generators_own_and_generated_once(run: Any, tiny: Any) -> None:
    models = tiny(run)
    evaluate(run, models=models)
    people, folder = held_out(run.config)[0], run.path / "evaluation"
    keys = asked(people)
    for name in ("popi_alternating", "raw_signals", "no_personalization"):
        contexts = contexts_of(name, run.config, people, models, folder)
        settings = response_settings(name, people, contexts, models, 4)
        file = run.path / f"{name}.jsonl"
        kept = ResumableRows(file, settings, ("window", "target"), resume=True)
        found, reasons = respond(name, keys, people, contexts, models, kept, lambda *_: None)
        generator = models.generator(models.generator_path(METHODS[name]))
        window, target = keys[-1]
        prompt, summary = people[window].user.targets[target].prompt, contexts[window].summary(target)
        if name == "raw_signals":
            told = generator.templates.raw_signals_messages(prompt, contexts[window].signals)
            assert found[keys[-1]] == generator.reply_many([told], max_new_tokens=4)[0]
        else:
            assert (summary is None) == (name == "no_personalization")
            assert found[keys[-1]] == generator.generate(prompt, summary, max_new_tokens=4)
        assert reasons == {} and len(found) == len(keys)
        before, again = file.read_bytes(), tiny(run)
        kept = ResumableRows(file, settings, ("window", "target"), resume=True)
        assert respond(name, keys, people, contexts, again, kept, lambda *_: None)[0] == found
        assert again.asked == [] and file.read_bytes() == before


def test_summaries_of_another_evaluation_are_refused(run: Any, tiny: Any) -> None:
    people, folder = held_out(run.config)[0], run.path / "evaluation"
    with pytest.raises(RunError, match="has no summaries for oracle.*popi evaluate"):
        contexts_of("oracle", run.config, people, tiny(run), folder)
    evaluate(run, models=tiny(run))
    contexts_of("oracle", run.config, people, tiny(run), folder)
    with pytest.raises(RunError, match="of other users"):
        contexts_of("oracle", run.config, people[:2], tiny(run), folder)


def test_what_a_server_did_not_answer_is_missing_and_asked_again(
    run: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, people = tiny(run), held_out(run.config)[0]
    twos = run.config.evaluation.model_copy(update={"batch_size": 2})
    models.config = run.config.model_copy(update={"evaluation": twos})
    keys, contexts = asked(people), [METHODS["no_personalization"].contexts(None, people)[0]] * 3
    settings = response_settings("no_personalization", people, contexts, models, 4)
    down = UpstreamError("no server")

    def ask(answers: Failing) -> tuple[dict[Any, Any], dict[str, int]]:
        monkeypatch.setattr(models, "generator", lambda path: Generator(answers, "nano"))
        kept = ResumableRows(tmp_path / "r.jsonl", settings, ("window", "target"), resume=True)
        return respond("no_personalization", keys, people, contexts, models, kept, lambda *_: None)

    first = Failing(["a", down], [down, down])
    found, reasons = ask(first)
    assert first.asked == [2, 2]  # then the server was down: the last two were not sent
    assert list(found.values()) == ["a", None, None, None, None, None] and reasons == {"no server": 3}
    second = Failing(["b", "c"], ["d", "e"], ["f"])
    found, reasons = ask(second)
    assert second.asked == [2, 2, 1] and list(found.values()) == list("abcdef") and reasons == {}

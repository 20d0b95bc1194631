import json
from pathlib import Path

import pytest
import torch
from exact import nearly

from popi.config import resolve
from popi.config.evaluation import CopiedConfig
from popi.engine.scoring import pair_logps_plain, soft_pair_logps
from popi.errors import ConfigError, DataError, RunError
from popi.evaluation.job import check_rows, read_rows
from popi.evaluation.methods import METHODS
from popi.evaluation.runner import evaluate, metrics_path, training_seconds
from popi.evaluation.users import held_out
from popi.generator import Generator
from popi.models.local.user_embedding import UserIdEmbedding
from popi.models.spec import ModelSpec
from popi.runs.provenance import commit
from popi.signals.copying import copy_signals

EVALUATED = [
    "no_personalization",
    "raw_signals",
    "untrained_summary",
    "tally",
    "marker_vote",
    "exact_reader",
    "oracle",
    "popi_plug_and_play",
    "popi_alternating",
]
SCORED = len(EVALUATED) - 1
"""Methods whose every pair is scored: the tally of a random model names nothing, which is the plain prompt."""


@pytest.fixture
def scored(monkeypatch):
    """How many target pairs each call of the generator's scoring was given."""
    counts = []
    real = Generator.score_each
    monkeypatch.setattr(
        Generator, "score_each", lambda self, pairs, *a: (counts.append(len(pairs)), real(self, pairs, *a))[1]
    )
    return counts


def test_metrics_json_has_the_schema_of_the_issue(run, tiny) -> None:
    result = evaluate(run, models=tiny(run))
    assert json.loads((run.path / "metrics.json").read_text()) == result
    assert {"commit", "config", "seed", "versions", "n_users", "n_pairs", "methods", "seconds"} <= set(result)
    assert (result["n_users"], result["n_pairs"], result["seed"]) == (3, 6, 0)
    assert result["config"] == run.config.model_dump(mode="json")
    assert list(result["methods"]) == EVALUATED
    assert result["not_trained"] == [
        "population_dpo",
        "fspo",
        "copy_dpo",
        "untrained_summary_copy_dpo",
        "user_embedding",
        "user_embedding_from_signals",
        "popi_simultaneous",
    ]
    for name, entry in result["methods"].items():
        for key in ("reward_accuracy", "margin"):
            assert set(entry[key]) == {"value", "low", "high"}
        assert isinstance(entry["context_overhead_tokens"], float)
        assert (entry["attribute_recall"] is None) == (not METHODS[name].has_summary)
    assert result["methods"]["oracle"]["attribute_precision"] == 1.0
    assert result["methods"]["oracle"]["attribute_recall"] == 1.0


def test_every_pair_is_scored_once_under_every_method(run, tiny, scored) -> None:
    evaluate(run, models=tiny(run))
    assert sum(scored) == 6 * SCORED
    for name in EVALUATED:
        rows = read_rows(run.path / "evaluation" / f"{name}.jsonl")
        assert [(row["window"], row["target"]) for row in rows] == [(w, t) for w in range(3) for t in range(2)]


def test_rows_can_be_recomputed_from_whole_sequences(precision, run, tiny) -> None:
    models = tiny(run)
    evaluate(run, models=models)
    people = held_out(run.config)[0]
    base, trained = models.generator("nano"), models.generator("phases/generator-1")
    for row in read_rows(run.path / "evaluation" / "popi_alternating.jsonl"):
        target = people[row["window"]].user.targets[row["target"]]
        item = trained.items([target], row["summary"])[0]
        plain = base.reference_items([target])[0]
        chosen, rejected = pair_logps_plain(trained.local.model, [item])
        ref_chosen, ref_rejected = pair_logps_plain(base.local.model, [plain])
        assert row["chosen_logp"] == nearly(chosen)
        assert row["reference_rejected_logp"] == nearly(ref_rejected)
        assert row["margin"] == nearly(chosen - ref_chosen - rejected + ref_rejected, of=float(chosen.abs()))
        assert row["overhead_tokens"] == len(item.prefix) - len(plain.prefix) > 0
        assert row["preferred"] == sorted(map(list, people[row["window"]].preferences))


def test_raw_signals_are_in_the_prompt_and_cost_their_tokens(run, tiny) -> None:
    models = tiny(run)
    evaluate(run, models=models)
    people, base = held_out(run.config)[0], models.generator("nano")
    row = read_rows(run.path / "evaluation" / "raw_signals.jsonl")[0]
    prompt = people[0].user.targets[0].prompt
    whole = base.local.encode_chat(base.templates.raw_signals_messages(prompt, people[0].user.signals))
    assert row["overhead_tokens"] == len(whole) - len(base.prompt_ids(prompt, None)) > 100
    assert row["summary"] is None


def test_copied_signals_are_a_summary_with_its_tokens_if_enabled(run, tiny) -> None:
    assert "copy" in evaluate(run, models=tiny(run))["not_enabled"]
    models, rows = tiny(run), {}
    base, people = models.generator("nano"), held_out(run.config)[0]
    for budget in (None, 40):
        copied = {"enabled": True, "token_budget": budget}
        evaluation = run.config.evaluation.model_copy(update={"copied": CopiedConfig(**copied)})
        models = tiny(run)
        models.config = run.config.model_copy(update={"evaluation": evaluation})
        result = evaluate(run, models.config, models=models)
        entry = result["methods"]["copy"]
        assert list(result["methods"]).index("copy") == 2 and entry["attribute_recall"] is not None
        rows[budget] = read_rows(run.path / "evaluation" / "copy.jsonl")
        for row in rows[budget]:
            text, dropped = copy_signals(
                base.templates, people[row["window"]].user.signals, budget or 8192, base.count_tokens
            )
            assert (row["summary"], row["signals_dropped"]) == (text, list(dropped))
            assert row["summary_tokens"] == base.count_tokens(text) <= (budget or 8192)
            assert row["messages"][0]["content"].endswith(text) and row["overhead_tokens"] >= row["summary_tokens"]
        assert not any("inference_model" in row["models"] for row in rows[budget])
    assert all(full["summary_tokens"] > cut["summary_tokens"] for full, cut in zip(*rows.values(), strict=True))


def test_a_trained_generator_reads_raw_signals_or_a_soft_prompt(precision, run, tiny) -> None:
    """FSPO and the user embedding, from whole sequences; the reference is the base on the plain prompt."""
    run.methods = lambda: {"fspo": {}, "user_embedding": {}}
    run.models = lambda order: ("nano", f"phases/{order}")
    models = tiny(run)
    people, base = held_out(run.config)[0], models.generator("nano")
    embedding = UserIdEmbedding(0.3 * torch.randn(3, 32), [UserIdEmbedding.key(people[1].user)])
    embedding.offsets.data.normal_(std=0.3)

    bare = models.generator

    def generator(path: str) -> Generator:
        found = bare(path)
        found.embedding = embedding if path == "phases/user_embedding" else None
        return found

    models.generator = generator
    result = evaluate(run, models=models)
    assert {"fspo", "user_embedding"} <= set(result["methods"]) and "popi_alternating" in result["not_trained"]
    answered = json.loads((run.path / "evaluation" / "examples.json").read_text())["users"][0]["prompts"][0]["answers"]
    assert not {"raw_signals", "fspo", "user_embedding"} & set(answered)
    plain = {r["window"]: r for r in read_rows(run.path / "evaluation" / "no_personalization.jsonl")}
    for name in ("fspo", "user_embedding"):
        trained = generator(f"phases/{name}")
        for row in read_rows(run.path / "evaluation" / f"{name}.jsonl"):
            person = people[row["window"]]
            target = person.user.targets[row["target"]]
            if name == "fspo":
                messages = trained.templates.raw_signals_messages(target.prompt, person.user.signals)
                item = trained.item(trained.local.encode_chat(messages), target)
                with torch.no_grad():
                    chosen, _ = pair_logps_plain(trained.local.model, [item])
                assert row["overhead_tokens"] == len(item.prefix) - len(base.prompt_ids(target.prompt, None)) > 100
            else:
                own = embedding.offsets[0] if row["window"] == 1 else 0
                soft = (embedding.generic + own).detach()[None]
                [item] = trained.reference_items([target])
                chosen, _ = soft_pair_logps(trained.local.model, [item], soft, 0)
                assert row["overhead_tokens"] == 3
            assert row["chosen_logp"] == nearly(chosen)
            if row["target"] == 1:
                assert row["reference_chosen_logp"] == plain[row["window"]]["chosen_logp"]


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_summaries_conditioned_on_the_prompt_are_one_a_target(precision, run, tiny) -> None:
    tree = run.config.model_dump(mode="json")
    tree["summary"]["conditioned_on_prompt"] = True
    run.config = resolve(tree)
    models = tiny(run)
    evaluate(run, models=models)
    people, trained = held_out(run.config)[0], models.generator("phases/generator-1")
    model = models.inference_model("phases/inference-1")
    examples = json.loads((run.path / "evaluation" / "examples.json").read_text())["users"]
    summaries = set()
    for row in read_rows(run.path / "evaluation" / "popi_alternating.jsonl"):
        user = people[row["window"]].user
        target = user.targets[row["target"]]
        assert row["summary"] == model.summarize(user.signals, prompt=target.prompt).text
        summaries.add(row["summary"])
        with torch.no_grad():
            chosen, _ = pair_logps_plain(trained.local.model, trained.items([target], row["summary"]))
        assert row["chosen_logp"] == nearly(chosen)
        if row["window"] < len(examples):
            asked = examples[row["window"]]["prompts"][row["target"]]
            assert asked["answers"]["popi_alternating"] == trained.generate(target.prompt, row["summary"], 4)
    assert len(summaries) > len(people), "they do depend on the prompt"
    for row in read_rows(run.path / "evaluation" / "oracle.jsonl"):
        assert row["summary"] == people[row["window"]].oracle


def test_metrics_hold_calibration_differences_and_the_losss_terms(run, tiny) -> None:
    result = evaluate(run, models=tiny(run))
    assert json.loads((run.path / "metrics.json").read_text()) == result
    assert set(result["loss_of_the_best"]) == {"nothing", "signals"}
    others = {"no_personalization", "untrained_summary", "raw_signals", "popi_plug_and_play"}
    for name, entry in result["methods"].items():
        assert set(entry["differences"]) == others - {name}
        drift = entry["chosen_drift"]["value"]
        assert drift == 0 if name in ("no_personalization", "tally") else abs(drift) > 0
        assert set(entry["calibration"]) == {
            "beta",
            "expected_calibration_error",
            "brier_score",
            "log_loss",
            "reliability",
        }
        assert sum(part["pairs"] for part in entry["calibration"]["reliability"]) == 6
        assert set(entry["loss_terms"]) == {"beta", "fitted", "world"}
        assert ("response_length" in entry) == METHODS[name].answers and "prompt_cost" not in entry
    assert result["methods"]["oracle"]["loss_terms"]["world"]["left_unsaid"]["value"] == 0.0


def test_no_personalization_is_exactly_half(run, tiny) -> None:
    result = evaluate(run, models=tiny(run))
    rows = read_rows(run.path / "evaluation" / "no_personalization.jsonl")
    assert {row["margin"] for row in rows} == {0.0} and {row["overhead_tokens"] for row in rows} == {0}
    assert result["methods"]["no_personalization"]["reward_accuracy"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_an_empty_summary_leaves_an_untrained_generator_at_exactly_zero(run, tiny, monkeypatch) -> None:
    models = tiny(run)
    model = models.inference_model("nano")
    model.local.decode = lambda ids: ""
    monkeypatch.setattr(models, "inference_model", lambda path: model)
    result = evaluate(run, models=models)
    assert {row["margin"] for row in read_rows(run.path / "evaluation" / "untrained_summary.jsonl")} == {0.0}
    assert result["methods"]["untrained_summary"]["attribute_precision"] is None
    assert result["methods"]["untrained_summary"]["attribute_recall"] == 0.0


def test_methods_that_share_an_inference_model_are_summarised_once(run, tiny) -> None:
    models = tiny(run)
    evaluate(run, models=models)
    assert sorted(ask for ask in models.asked if ask.startswith("inference")) == [
        "inference nano",
        "inference nano",  # the tally asks it otherwise
        "inference phases/inference-1",
    ]


def test_a_finished_evaluation_scores_nothing_again(run, tiny, scored) -> None:
    first = evaluate(run, models=tiny(run))
    done = len(scored)
    again = tiny(run)
    assert evaluate(run, models=again)["methods"] == first["methods"]
    assert len(scored) == done and again.asked == []


def test_an_interrupted_evaluation_goes_on_with_what_is_missing(run, tiny, scored) -> None:
    first = evaluate(run, models=tiny(run))
    (run.path / "evaluation" / "oracle.jsonl").unlink()
    scored.clear()
    assert evaluate(run, models=tiny(run))["methods"] == first["methods"]
    assert sum(scored) == 6


def test_other_settings_score_again(run, tiny, scored) -> None:
    evaluate(run, models=tiny(run))
    scored.clear()
    run.config = resolve(run.config.model_dump(mode="json") | {"seed": 5})
    evaluate(run, models=tiny(run))
    assert sum(scored) == 6 * SCORED


def test_changed_weights_score_again(run, tiny, scored, tmp_path: Path) -> None:
    weights = tmp_path / "generator" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    run.models = lambda order: ("phases/inference-1", "nano" if order == "plug_and_play" else str(weights.parent))
    evaluate(run, models=tiny(run))
    scored.clear()
    weights.write_bytes(b"other")
    evaluate(run, models=tiny(run))
    assert sum(scored) == 6  # only the method whose weights changed


def test_a_row_that_is_missing_or_twice_is_an_error() -> None:
    rows = [{"window": 0, "target": 0}, {"window": 0, "target": 0}]
    with pytest.raises(RunError, match="1 missing, 1 duplicated"):
        check_rows("oracle", rows, [(0, 0), (0, 1)])


def test_another_generator_has_its_own_reference_and_keeps_a_share_of_the_gain(run, tiny) -> None:
    with pytest.raises(RunError, match="popi evaluate --run"):
        evaluate(run, generator=ModelSpec("second"), models=tiny(run, "second"))
    own = evaluate(run, models=tiny(run))
    models = tiny(run, "second")
    result = evaluate(run, generator=ModelSpec("second"), models=models)
    folder = run.path / "evaluation" / "with-second"
    assert json.loads((folder / "metrics.json").read_text()) == result
    assert json.loads((run.path / "metrics.json").read_text()) == own
    assert {ask for ask in models.asked if ask.startswith("generator")} == {"generator second"}
    plain = [
        {(r["chosen_logp"], r["window"]) for r in read_rows(path / "no_personalization.jsonl")}
        for path in (folder, run.path / "evaluation")
    ]
    assert not plain[0] & plain[1]
    accuracy = [r["methods"]["popi_plug_and_play"]["reward_accuracy"]["value"] for r in (result, own)]
    expected = (accuracy[0] - 0.5) / (accuracy[1] - 0.5) if accuracy[1] > 0.5 else None
    assert result["gain_kept"]["popi_plug_and_play"] == expected
    summaries = [
        [r["summary"] for r in read_rows(path / "popi_plug_and_play.jsonl")]
        for path in (folder, run.path / "evaluation")
    ]
    assert summaries[0] == summaries[1]


def test_a_namesake_does_not_replace_another_generators_evaluation(run, tiny) -> None:
    evaluate(run, models=tiny(run))
    first = evaluate(run, generator=ModelSpec("one/second"), models=tiny(run, "one/second"))
    with pytest.raises(RunError, match="one/second, not two/second"):
        evaluate(run, generator=ModelSpec("two/second"), models=tiny(run, "two/second"))
    assert json.loads((run.path / "evaluation" / "with-second" / "metrics.json").read_text()) == first
    evaluate(run, generator=ModelSpec("one/second"), models=tiny(run, "one/second"))


def write_users(path: Path, *user_ids: str) -> Path:
    pair = {"prompt": "what about puzzles?", "chosen": "hi there.", "rejected": "hey."}
    users = [
        {"user_id": u, "signals": [{"type": "post", "text": f"i like jokes, says {u}."}], "targets": [pair]}
        for u in user_ids
    ]
    path.write_text("".join(json.dumps(user) + "\n" for user in users))
    return path


def test_templates_without_a_tally_have_no_such_row(run, tiny) -> None:
    tree = run.config.model_dump(mode="json")
    run.config = resolve(tree | {"signals": tree["signals"] | {"template": "default"}})
    result = evaluate(run, models=tiny(run))
    assert result["not_applicable"] == ["tally"] and "marker_vote" in result["methods"]


def test_users_of_a_file_have_no_truth(run, tiny, tmp_path: Path) -> None:
    file = write_users(tmp_path / "mine.jsonl", "a", "b")
    result = evaluate(run, users=file, models=tiny(run))
    assert "oracle" not in result["methods"]
    assert result["not_applicable"] == ["tally", "marker_vote", "exact_reader", "oracle"]
    assert result["methods"]["untrained_summary"]["attribute_recall"] is None
    assert "loss_of_the_best" not in result and "world" not in result["methods"]["raw_signals"]["loss_terms"]
    assert (result["n_users"], result["n_pairs"]) == (2, 2)
    assert metrics_path(run, users=file) == run.path / "evaluation" / "on-mine" / "metrics.json"
    assert metrics_path(run, users=file).is_file() and not (run.path / "metrics.json").exists()


def test_windows_of_one_user_are_one_cluster(run, tiny, tmp_path: Path) -> None:
    row = {"user_id": "u", "prompt": "what about tea?"}
    rows = [row | {"prompt": f"what about tea {i}?", "chosen": f"hi {i}.", "rejected": f"hey {i}."} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = evaluate(run, users=file, models=tiny(run))
    assert (result["n_users"], result["n_pairs"]) == (1, 4)  # 12 rows: two windows of 4 signals and 2 targets
    assert result["methods"]["popi_plug_and_play"]["margin"]["low"] is None


def test_nobody_to_evaluate_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.test"):
        held_out(resolve({"data": {"source": "users.jsonl"}}))
    file = tmp_path / "bad.jsonl"
    file.write_text('{"user_id": "a", "signals": 3}\n')
    with pytest.raises(DataError, match="line 1"):
        held_out(resolve({}), file)


def test_examples_hold_signals_summaries_and_answers(run, tiny) -> None:
    evaluate(run, models=tiny(run))
    users = json.loads((run.path / "evaluation" / "examples.json").read_text())["users"]
    assert len(users) == 2
    for user, person in zip(users, held_out(run.config)[0], strict=False):
        assert user["user_id"] == person.user.user_id and len(user["signals"]) == len(person.user.signals)
        assert user["preferences"] == dict(person.preferences)
        assert set(user["summaries"]) == {name for name in EVALUATED if METHODS[name].has_summary}
        rows = read_rows(run.path / "evaluation" / "popi_alternating.jsonl")
        assert user["summaries"]["popi_alternating"] in [row["summary"] for row in rows]
        for asked in user["prompts"]:
            assert set(asked["answers"]) == set(EVALUATED) - {"raw_signals"}


def test_text_with_line_separators_stays_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"summary": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows(path) == [{"summary": "a\u2028b"}]


def test_training_seconds_add_up_over_steps(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert training_seconds(log) == 0.0
    log.write_text("".join(json.dumps({"seconds": s}) + "\n" for s in (1, 2, 5, 0.5, 2)))
    assert training_seconds(log) == 10.5


def test_a_commit_is_named() -> None:
    assert commit()


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "oracle.jsonl").write_text("{")
    with pytest.raises(RunError, match=r"oracle\.jsonl: damaged"):
        read_rows(tmp_path / "oracle.jsonl")


def test_damaged_stamps_score_again(run, tiny, scored) -> None:
    first = evaluate(run, models=tiny(run))
    (run.path / "evaluation" / "finished.json").write_text("{")
    whole = sum(scored)
    assert evaluate(run, models=tiny(run))["methods"] == first["methods"]
    assert sum(scored) == 2 * whole


def test_a_refused_evaluation_leaves_no_folder(run, tiny) -> None:
    with pytest.raises(RunError, match="popi evaluate --run"):
        evaluate(run, generator=ModelSpec("other"), models=tiny(run))
    assert not (run.path / "evaluation").exists()

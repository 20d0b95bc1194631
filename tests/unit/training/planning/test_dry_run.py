"""The plan of a run: every shipped config plans without weights, and what can't fit is refused with a way out."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import popi.models.local.loading as loading
from popi.cli import app
from popi.config import load_config, resolve
from popi.config.benchmark import LOCAL
from popi.errors import ConfigError, DataError, ModelError
from popi.signals.fading import Previous
from popi.signals.render import Templates
from popi.training.planning.dry_run import GIB, Device, RunPlan, dry_run
from popi.training.planning.shapes import counter
from popi.training.templates import with_template

ROOT = Path(__file__).parents[4]
SHIPPED = sorted((ROOT / "configs").glob("*.toml"))
CONFIGS = [path for path in SHIPPED if "[[benchmarks]]" not in path.read_text()]  # the others are grids
WORLDS = ("demo", "nano", "nano_credit", "nano_length")
"""Configs on the shipped model: two cores, and no figure from elsewhere to aim at."""


def gpu(gib: float) -> Device:
    return Device("a GPU", int(gib * GIB), gpu=True)


def cpu(gib: float) -> Device:
    return Device("a machine", int(gib * GIB), gpu=False)


def head(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def planned(device: Device | None = None, **tree: Any) -> RunPlan:
    return dry_run(resolve({"data": {"train_users": 40}, **tree}), device or cpu(8))


LOAD_ONCE = functools.cache(loading.load_tokenizer)
"""Out of a GGUF file transformers takes seconds to read a tokenizer: once for all configs that name it."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_plans_on_the_device_that_its_head_names(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_tokenizer", LOAD_ONCE)
    config, text = load_config(path), head(path)
    assert config.name == path.stem
    if path.stem in WORLDS:
        assert "two cores" in text.lower()
        plan = dry_run(config, cpu(4))
    else:
        found = re.search(r"# Needs: (one GPU|two cores).*?(\d+) GiB", text)
        assert found and "Aims at:" in text and "estimated" in text, "hardware, time and aim stand at the head"
        plan = dry_run(config, (gpu if found[1] == "one GPU" else cpu)(int(found[2])))
    assert plan.problems == []
    if time := re.search(r"for about (\d+) (days|hours)", text):
        hours = int(time[1]) * (24 if time[2] == "days" else 1)
        assert sum(one.hours for one in plan.phases) == pytest.approx(hours, rel=0.15), "the time at its head"
    assert len(plan.lines()) >= 5 + 2 * len(plan.phases)
    assert len(plan.phases) >= (1 if path.stem in ("nano_credit", "nano_length") else 2)


@pytest.mark.parametrize("path", [path for path in CONFIGS if "LoRA, on one GPU" in head(path)], ids=lambda p: p.stem)
def test_the_lora_variant_of_a_recipe_plans_too(path: Path) -> None:
    found = re.search(r"LoRA, on one GPU of (\d+) GiB.*\n#   (popi train .*)", head(path))
    assert found
    words = shlex.split(found[2])
    assert words[:3] == ["popi", "train", f"configs/{path.name}"]
    config = load_config(path, words[3:])
    assert config.model.adapter == "lora" and config.name == f"{path.stem}_lora"
    assert dry_run(config, gpu(int(found[1]))).problems == []


def test_the_released_settings_are_those_of_the_method() -> None:
    for name in ("elix", "review", "roleplay", "alignx"):
        config = load_config(ROOT / "configs" / f"{name}.toml")
        phase, generator = config.training.inference, config.training.generator
        assert (config.model.base, config.model.adapter) == ("meta-llama/Llama-3.2-3B-Instruct", "none")
        assert (config.data.train_users, config.summary.max_tokens) == (20000, 2048)
        assert (phase.users_per_step, phase.group_size, phase.kl, phase.beta) == (8, 8, 2e-3, 0.01)
        assert (config.summary.temperature, config.summary.top_p) == (0.6, 1.0)
        assert phase.learning_rate == generator.learning_rate == 1e-6
        assert phase.warmup_steps == generator.warmup_steps == 150
        assert (generator.batch_size, generator.max_grad_norm) == (8, 10.0)
        assert (config.training.orders, config.training.rounds) == (["alternating"], 1)
        assert phase.steps * phase.users_per_step == generator.steps * generator.batch_size == 20000
        assert dry_run(config, gpu(139)).shapes.prompt <= 8192


# -- what is planned ----------------------------------------------------------------------------------------------


def test_lengths_are_measured_where_data_and_tokenizer_are_at_hand() -> None:
    from popi.data.users import users_of
    from popi.inference_model import InferenceModel
    from popi.models.local.model import LocalModel

    plan = planned()
    assert "tokens by the model's tokenizer and chat template" in plan.shapes.notes
    model = InferenceModel(LocalModel.load("nano", device="cpu"))
    longest = max(len(model.prompt_ids(user.signals)[0]) for user in users_of(plan.config, "train").users)
    assert longest <= plan.shapes.prompt <= longest + 24, "the chat template's own tokens are allowed for"
    assert plan.shapes.users == 40


def test_users_none_of_whose_signals_fits_are_told() -> None:
    told = "40 of those users have no signal that fits: no summary is trained on them"
    assert told in "\n".join(planned(signals={"token_budget": 5}).lines())
    assert "have no signal" not in "\n".join(planned().lines())


def test_renewals_are_counted() -> None:
    """A renewal reads about a third of the signals and an old summary; the longest, all but one signal and that."""
    training = {"steps": 5, "users_per_step": 4, "group_size": 2, "targets_per_summary": 1, "kl": 0.0}
    whole = planned(summary={"max_tokens": 10}, training={"inference": training})
    half = planned(summary={"max_tokens": 10}, training={"inference": training, "renewal": {"share": 0.5}})
    plain, shapes = whole.shapes, half.shapes
    templates = Templates.load("nano")
    added = shapes.prompt - plain.prompt
    old = templates.inference_messages([], previous=Previous(" ".join(["tone"] * 10), 22))[1]["content"]
    count = counter(half.config)[0]
    assert added == count(old) - count(templates.inference_messages([])[1]["content"])
    assert plain.earlier_mean == 0 and 0.5 * plain.prompt_mean < shapes.earlier_mean < 0.9 * plain.prompt_mean
    assert shapes.prompt_mean < plain.prompt_mean
    work, before = half.phases[0].work, whole.phases[0].work
    written = 0.5 * 5 * 4
    trees = 5 * 4 * (plain.prompt_mean - shapes.prompt_mean)
    assert work.read == pytest.approx(before.read - trees + written * (shapes.earlier_mean + 10))
    assert work.decoded == before.decoded + 10  # one batch of old summaries


def test_work_by_hand() -> None:
    training = {"steps": 5, "users_per_step": 4, "group_size": 2, "targets_per_summary": 1, "kl": 0.0}
    plan = planned(summary={"max_tokens": 10}, training={"inference": training})
    [phase], shapes = plan.phases, plan.shapes
    tree = 4 * (shapes.prompt_mean + 2 * 10)
    scored = 4 * 2 * (shapes.plain_mean + shapes.guide)
    references = 5 * 4 * 4 * shapes.plain_mean  # all four targets of each of 20 users, once
    assert phase.work.samples == 5 * 4 * 2
    assert phase.work.trained == pytest.approx(5 * tree)
    assert phase.work.read == pytest.approx(5 * (tree + scored) + references)


def test_credit_for_clauses_scores_the_beginnings_of_summaries() -> None:
    """Of ten tokens two clauses: the empty summary once per group, the first clause alone of each."""
    training = {"steps": 5, "users_per_step": 4, "group_size": 2, "targets_per_summary": 1, "kl": 0.0}
    plans = [
        planned(summary={"max_tokens": 10}, training={"inference": training | {"credit": credit}})
        for credit in ("summary", "clause")
    ]
    whole, clauses = (plan.phases[0].work for plan in plans)
    shapes = plans[1].shapes
    more = 5 * 4 * (1 + 2) * (shapes.plain_mean + shapes.guide - 5)
    assert clauses.read == pytest.approx(whole.read + more)
    assert (clauses.trained, clauses.decoded) == (whole.trained, whole.decoded)


def test_users_set_aside_are_counted_apart() -> None:
    training: dict[str, Any] = {"eval_steps": 2, "eval_users": 10, "inference": {"steps": 5, "users_per_step": 4}}
    plan = planned(training=training)
    assert (plan.shapes.users, plan.shapes.held_out) == (30, 10) and plan.phases[0].work.evaluations == 2
    assert "2 evaluations on 10 users set aside" in "\n".join(plan.lines())
    training["inference"]["users_per_step"] = 31
    assert "needs 31 different users, but there are 30" in planned(training=training).problems[0]
    with pytest.raises(DataError, match="eval_users=40 leaves none of 40 users to train on"):
        planned(training={"eval_steps": 2, "eval_users": 40})
    with pytest.raises(ConfigError, match="eval_users=64 leaves none of data.train_users=40"):
        planned(training={"eval_steps": 2}, data={"source": "elix", "train_users": 40})


def test_work_of_the_baselines_by_hand() -> None:
    orders = ["population_dpo", "fspo", "user_embedding", "user_embedding_from_signals"]
    training = {"orders": orders, "generator": {"steps": 5, "batch_size": 8}, "user_embedding": {"tokens": 3}}
    plan = planned(training=training)
    plain, raw = plan.shapes.plain_mean, plan.shapes.raw_mean
    references = 10 * 4 * plain  # 40 pairs, four of each user
    expected = [(references, plain), (references, plain + raw)]
    expected += [(references, plain + 3), (references + 10 * raw, plain + 3)]
    found = [(phase.work.read, phase.work.trained / 40) for phase in plan.phases]
    assert found == [pytest.approx(numbers) for numbers in expected]
    assert plan.problems == [] and raw > 100


def test_work_of_summaries_conditioned_on_the_prompt() -> None:
    training = {"orders": ["alternating"], "generator": {"steps": 5, "batch_size": 8}}
    training |= {"inference": {"steps": 1, "targets_per_summary": 1}}
    plans = [planned(training=training, summary={"conditioned_on_prompt": on}) for on in (False, True)]
    one, each = (plan.phases[1].work.read for plan in plans)
    users, targets = 10, 4
    read = [plan.shapes.prompt_mean for plan in plans]
    assert read[1] > read[0]
    assert each - one == pytest.approx(users * targets * read[1] - users * read[0])


def test_raw_signals_must_fit_the_context() -> None:
    training = {"orders": ["fspo"]}
    data = {"source": "elix", "train_users": 123}
    [problem, *_] = planned(training=training, data=data, summary={"max_tokens": 16}).problems[1:]
    assert "raw signals, task prompt and response take up to" in problem and "signals.token_budget" in problem


def test_data_that_is_not_here_is_planned_from_the_settings() -> None:
    plan = planned(data={"source": "elix", "train_users": 123})
    assert plan.shapes.users == 123 and "elix is on the hub" in plan.shapes.notes[0]
    plan = planned(data={"source": "polis", "benchmark": {"path": "no/such/file.jsonl"}})
    assert "no/such/file.jsonl is not here" in plan.shapes.notes[0]


def test_bad_data_is_refused_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "users.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="user_id"):
        planned(data={"source": str(tmp_path / "users.jsonl")})


# -- what is refused ----------------------------------------------------------------------------------------------


def test_prompt_and_summary_must_fit_the_context() -> None:
    [problem, *_] = planned(summary={"max_tokens": 2000}).problems
    assert re.search(r"prompt and summary take up to 2,\d\d\d tokens and the model's context is 2,048", problem)
    assert "signals.token_budget or summary.max_tokens" in problem


def test_more_users_or_pairs_a_step_than_there_are() -> None:
    assert (
        "needs 41 different users, but there are 40"
        in planned(training={"inference": {"users_per_step": 41}}).problems[0]
    )
    training = {"orders": ["population_dpo"], "generator": {"batch_size": 161}}
    assert "needs 161 target pairs, but there are at most 160" in planned(training=training).problems[0]


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        ([], "training.gradient_checkpointing=true"),
        (
            ["training.gradient_checkpointing=true"],
            "lower training.inference.micro_batch (now unset, that is all at once)",
        ),
        (["training.gradient_checkpointing=true", "training.inference.micro_batch=1"], "lower signals.token_budget"),
        (["model.base=meta-llama/Llama-3.2-3B-Instruct", "training.inference.micro_batch=1"], "model.adapter=lora"),
        (
            ['training.orders=["simultaneous"]', "training.gradient_checkpointing=true"],
            "training.inference.users_per_step",
        ),
    ],
)
def test_too_much_memory_is_refused_with_a_way_out(overrides: list[str], way_out: str) -> None:
    base = ["model.base=meta-llama/Llama-3.2-1B-Instruct", "model.adapter=lora", "data.train_users=40"]
    if any("3B" in override for override in overrides):
        base = ["data.train_users=40"]
    problems = dry_run(load_config(None, [*base, "summary.max_tokens=640", *overrides]), gpu(2.8)).problems
    assert problems and all("GiB, but a GPU has 2.8" in problem for problem in problems)
    assert way_out in problems[0]


# -- the template set ---------------------------------------------------------------------------------------------


def test_auto_takes_the_benchmarks_set_unless_the_model_has_its_own(tiny_base: Path, tmp_path: Path) -> None:
    def settled(base: str, source: str, **more: Any) -> str:
        benchmark = {"path": "x"} if source in LOCAL else {}
        tree = {"model": {"base": base}, "data": {"source": source, "benchmark": benchmark}, **more}
        return with_template(resolve(tree)).signals.template

    for source in ("elix", "review", "roleplay", "alignx", "polis", "persona", "movielens"):
        assert settled("owner/llm", source) == source
        assert settled("nano", source) == settled(str(tiny_base), source) == "auto"
    for source in ("nano", "mtbench", "preferences", "lamp", "users.jsonl"):
        assert settled("owner/llm", source) == "auto"
    assert settled("owner/llm", "elix", signals={"template": "default"}) == "default"
    (tmp_path / "popi.json").write_text("{")
    assert settled(str(tmp_path), "elix") == "elix"


# -- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_a_plan_and_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = ["train", str(ROOT / "configs" / "nano.toml"), f"root={tmp_path / 'runs'}", "data.train_users=40"]
    done = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert done.exit_code == 0, done.output
    for words in ("0.9 M weights", "phase    inference-1: 320 steps", "memory", "GiB", "40 users", "total"):
        assert words in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_command_refuses_what_cannot_fit() -> None:
    arguments = ["train", str(ROOT / "configs" / "elix.toml"), "--dry-run", "--gpu-memory", "24"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError) and "this run can't fit" in str(done.exception)
    assert "inference-1 needs about" in str(done.exception) and "memory" in done.stdout, "the plan is printed first"


def test_gpu_memory_goes_with_a_dry_run() -> None:
    done = CliRunner().invoke(app, ["train", str(ROOT / "configs" / "nano.toml"), "--gpu-memory", "24"])
    assert done.exit_code == 2 and "--dry-run" in done.output


def test_the_device_and_its_type_must_be_there() -> None:
    with pytest.raises(ModelError, match="device 'cuda' is not available .* --gpu-memory"):
        dry_run(resolve({"model": {"device": "cuda"}}))
    with pytest.raises(ModelError, match="float16 on a CPU"):
        dry_run(resolve({"model": {"device": "cpu", "dtype": "float16"}}))


def test_the_chat_template_must_be_one_that_can_be_used(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}go{% endif %}"
    with pytest.raises(ModelError, match="chat template"):
        dry_run(resolve({"model": {"device": "cpu", "chat_template": template}}))
    with pytest.raises(ModelError, match="neither Jinja text nor a readable file"):
        dry_run(resolve({"model": {"device": "cpu", "chat_template": str(tmp_path / "no.jinja")}}))

"""A grid's file: what is refused and how, and the grids that ship."""

import io
from pathlib import Path

import pytest
from pydantic import BaseModel
from rich.console import Console

from popi.config import resolve, with_method
from popi.config.evaluation import EvaluationConfig
from popi.errors import ConfigError
from popi.evaluation.grid.benchmarks import available_entries, evaluation_config
from popi.evaluation.grid.settings import GridBenchmark, GridConfig, GridGenerator, GridJudge, load_grid
from popi.evaluation.methods import METHODS

CONFIGS = Path(__file__).parents[4] / "configs"
RUN = '[[benchmarks]]\nrun = "runs/a"\n'


def load(tmp_path: Path, text: str, *overrides: str) -> GridConfig:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    return load_grid(file, list(overrides))


@pytest.mark.parametrize("section", [GridConfig, GridBenchmark, GridGenerator, GridJudge])
def test_every_setting_is_documented(section: type[BaseModel]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "benchmarks: Field required"),
        (RUN + "sauce = 1\n", "benchmarks.0.sauce: no such setting; allowed here: name, run, config, overrides, users"),
        ("benchmark = 1\n" + RUN, "benchmark: no such setting; allowed here: name, root, benchmarks"),
        ('[[benchmarks]]\nname = "x"\n', "set exactly one of `run`"),
        (RUN + 'config = "b.toml"\n', "set exactly one"),
        (RUN + 'overrides = ["seed=1"]\n', "'seed=1' can't change a trained run"),
        (RUN + RUN, "benchmarks: 'a' occurs twice"),
        ('methods = ["popi"]\n' + RUN, "methods: unknown 'popi'; allowed: no_personalization, raw_signals"),
        ("own_generator = false\n" + RUN, "no generator would read the summaries"),
        (RUN + '[[generators]]\nname = "own"\nmodel = "m"\n', "is reserved for the run's own generator"),
        (RUN + '[[generators]]\nname = "x"\n', "generators.0.model: Field required"),
        (RUN + 2 * '[[generators]]\nname = "x"\nmodel = "m"\n', "generators: 'x' occurs twice"),
        (RUN + '[[generators]]\nname = "x"\nmodel = "m"\nscores = true\n', "local models always score"),
        (
            RUN + '[[generators]]\nname = "x"\nmodel = "m"\nkey_env = "K"\n',
            "key_env applies only to a model behind an API",
        ),
        (
            RUN + '[[generators]]\nname = "x"\nmodel = "m"\nurl = "u"\ninput_price = 1\n',
            "set both input_price and output_price",
        ),
        (
            RUN + '[[generators]]\nname = "x"\nmodel = "m"\nurl = "u"\nprotocol = "anthropic"\nscores = true\n',
            "needs a vLLM server, protocol openai; got 'anthropic'",
        ),
        (RUN + '[[judges]]\nname = "j"\ntold = "auto"\n', "judges.0.told: no such setting; it is now called evidence"),
        (RUN + '[[judges]]\nname = "j"\n', "needs url and model"),
        (RUN + '[[judges]]\nname = "j"\nkind = "truth"\nmodel = "m"\n', "uses no model"),
        (RUN + '[[judges]]\nname = "j"\nkind = "truth"\ngenerators = ["y"]\n', "unknown 'y'; allowed: own"),
        (RUN + '[[judges]]\nname = "j"\nkind = "truth"\nbenchmarks = ["y"]\n', "unknown 'y'; allowed: a"),
        (RUN + '[[judges]]\nname = "j"\nkind = "truth"\npairs = [["oracle"]]\n', "judges.0.pairs.0"),
        (RUN + '[[judges]]\nname = "j"\nkind = "truth"\npairs = [["oracle", "oracle"]]\n', "compared with itself"),
        ('name = "a"\n[training]\nrounds = 1\n', "is the config of a run, not a grid; .*--run DIRECTORY"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="(?s)grid.toml.*" + words.replace("(", r"\(")):
        load(tmp_path, text)


def test_overrides_and_names(tmp_path: Path) -> None:
    text = RUN + 'users = "sets/mine.jsonl"\n[[benchmarks]]\nconfig = "' + str(CONFIGS / "nano.toml") + '"\n'
    grid = load(tmp_path, text + 'overrides = ["name=other"]\n', "name=mine", "max_users=5")
    assert (grid.name, grid.max_users, grid.directory) == ("mine", 5, Path("runs/mine"))
    assert [benchmark.label for benchmark in grid.benchmarks] == ["a-on-mine", "other"]


@pytest.mark.parametrize("name", ["nano_grid", "smollm2_grid", "suite", "transfer"])
def test_shipped_grids_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)  # their paths are relative to where popi is started
    grid = load_grid(f"configs/{name}.toml")
    assert grid.name == name
    for benchmark in grid.benchmarks:
        if benchmark.config is not None:
            assert benchmark.run_config().name != name, "the run and the grid have a directory each"


def test_what_is_not_at_hand_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nano, persona = (f'[[benchmarks]]\nconfig = "{CONFIGS}/{name}.toml"\n' for name in ("nano", "smollm2_persona"))
    console = Console(record=True, width=200, file=io.StringIO())
    every = load(tmp_path, nano + persona + RUN)
    assert available_entries(every, console) == every.benchmarks, "an error says so when their turn comes"
    some = load(tmp_path, "skip_missing = true\n" + nano + persona + RUN)
    assert [entry.label for entry in available_entries(some, console)] == ["nano"]
    printed = console.export_text()
    assert "skipped smollm2_persona: data/persona is not here" in printed
    assert "skipped a: there is no run in runs/a" in printed
    none = load(tmp_path, "skip_missing = true\n" + persona)
    with pytest.raises(ConfigError, match="no benchmark of this grid is available"):
        available_entries(none, console)


def test_the_suite_names_every_recipe_that_fits_one_gpu_of_24_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    named = {Path(entry.config or "").stem for entry in load_grid("configs/suite.toml").benchmarks}
    shipped = {path.stem for path in CONFIGS.glob("*.toml")}
    assert named == {"nano"} | {name for name in shipped if name.endswith("_1b") or name.startswith("smollm2_")} - {
        "smollm2_grid"
    }


def test_the_nano_grid_has_every_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    grid = load_grid("configs/nano_grid.toml")
    [benchmark] = grid.benchmarks
    config = with_method(benchmark.run_config(), "per_user_lora")
    assert set(grid.methods or []) | {"no_personalization"} == set(METHODS)
    assert {method.order for method in METHODS.values() if method.order} == set(config.training.orders)
    assert config.evaluation.per_user_lora.users == 100
    own = load_grid("configs/nano_grid.toml").benchmarks[0].run_config().training
    from popi.config import load_config

    assert own.inference == load_config("configs/nano.toml").training.inference


def test_the_transfer_grid_names_the_generators_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    grid = load_grid("configs/transfer.toml")
    names = " ".join(generator.name for generator in grid.generators)
    for name in (
        "Llama-3.2-1B",
        "Llama-3.2-3B",
        "Mistral-Small",
        "Mistral-Large",
        "DeepSeek-R1",
        "Claude",
        "GPT-4o-mini",
    ):
        assert name in names
    assert all(generator.key_env for generator in grid.generators if not generator.scores)


def test_a_grid_that_names_its_methods_decides_which_of_the_slow_ones_and_copies_there_are() -> None:
    def config_of(methods: list[str] | None) -> EvaluationConfig:
        entry = {"run": "runs/x"}
        grid = GridConfig.model_validate({"benchmarks": [entry], "methods": methods})
        config = with_method(resolve({}), "copied")
        return evaluation_config(grid.benchmarks[0], grid, config).evaluation

    assert config_of(None).copied.enabled and not config_of(None).per_user_lora.enabled
    assert config_of(["copy"]).copied.enabled
    named = config_of(["per_user_lora"])
    assert named.per_user_lora.enabled and not named.copied.enabled

import json
from pathlib import Path

import pytest

from popi.config import load_config, resolve
from popi.errors import ConfigError


def test_overrides_win_over_the_file_and_keep_their_types(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('name = "a"\n[training.inference]\nsteps = 3\ngroup_size = 4\n')
    config = load_config(
        file,
        [
            "training.inference.steps=7",
            "name=my-run",
            'training.orders=["alternating"]',
            "training.gradient_checkpointing=true",
        ],
    )
    assert (config.training.inference.steps, config.training.inference.group_size) == (7, 4)
    assert (config.name, config.training.orders) == ("my-run", ["alternating"])
    assert config.training.gradient_checkpointing is True
    assert config.directory == Path("runs/my-run")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=2026", "2026"),
        ("name=true", "true"),
        ("name='2026'", "2026"),
        ("data.test=7", "7"),
        ("model.chat_template=1.5", "1.5"),
        ("training.orders=alternating", ["alternating"]),
        ("training.orders=alternating,fspo", ["alternating", "fspo"]),
        ("training.orders=['alternating']", ["alternating"]),
        ("model.lora_target_modules=q_proj", "q_proj"),
        ("model.lora_target_modules=['q_proj']", ["q_proj"]),
        ("training.generator.lr_scheduler_kwargs.min_lr_rate=0.1", {"min_lr_rate": 0.1}),
        ("training.report_to=wandb,trackio", ["wandb", "trackio"]),
        ("training.report_to=[]", []),
        ("training.inference.kl=0", 0.0),
    ],
)
def test_a_value_is_what_its_setting_takes(override: str, value: object) -> None:
    found: object = load_config(None, [override])
    for part in override.partition("=")[0].removesuffix(".min_lr_rate").split("."):
        found = getattr(found, part)
    assert found == value


def test_an_empty_value_takes_a_setting_of_the_file_away(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('name = "a"\n[training.inference]\nmicro_batch = 4\nsteps = 7\n[data.benchmark]\nsplit_seed = 3\n')
    config = load_config(file, ["training.inference.micro_batch=", "training.inference.steps=", "data.benchmark="])
    assert config.training.inference == load_config(None).training.inference
    assert config.data == load_config(None).data and config.name == "a"


def test_a_saved_config_reads_back_as_the_same_run(tmp_path: Path) -> None:
    config = load_config(None, ["seed=3", "training.inference.kl=0.5"])
    saved = tmp_path / "config.json"
    saved.write_text(config.model_dump_json())
    assert load_config(saved) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.inference.step=3", ["training.inference.step", "no such setting", "steps", "users_per_step"]),
        ("trainin.steps=3", ["trainin", "no such setting", "training", "model"]),
        ("training.inference.steps=many", ["training.inference.steps", "many"]),
        ("training.inference.steps=0", ["training.inference.steps", "greater than 0", "got 0"]),
        ("training.generator.loss=kto", ["training.generator.loss", "'dpo' or 'ipo'", "kto"]),
        ("training.generator.label_smoothing=0.5", ["label_smoothing", "less than 0.5", "0.5"]),
        ("seed", ["'seed'", "section.key=value"]),
        ("=3", ["section.key=value"]),
        ("seed.more=3", ["seed"]),
        (".=3", ["section.key=value"]),
        ("training..steps=3", ["section.key=value"]),
        ("seed=true", ["seed", "integer", "got True"]),
        ("seed=1.0", ["seed", "integer", "got 1.0"]),
        ('training.inference.steps="3"', ["training.inference.steps", "integer", "got '3'"]),
        ("training.inference.scale_rewards=1", ["scale_rewards", "boolean", "got 1"]),
        ("training.inference.learning_rate=inf", ["learning_rate", "finite", "got inf"]),
        ("training.inference.kl=nan", ["kl", "nan"]),
        ("summary.top_p=0", ["summary.top_p", "greater than 0"]),
        ("summary.top_p=nan", ["summary.top_p", "nan"]),
        ("training.orders=plug,play", ["training.orders", "plug_and_play", "got 'plug"]),
        ("training.orderz=", ["training.orderz", "no such setting"]),
        ('name=""', ["name", "single folder", "got ''"]),
        ("name=..", ["name", "single folder", "got '..'"]),
        ("name=a/b", ["name", "single folder", "got 'a/b'"]),
        ('name="a\\nb"', ["name", "single folder"]),
        ('model.base=""', ["model.base", "at least 1 character"]),
        ('data.source=""', ["data.source", "at least 1 character"]),
    ],
)
def test_a_wrong_key_type_or_value_names_itself_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    for word in words:
        assert word in str(error.value)


def test_an_override_below_a_setting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\n")
    with pytest.raises(ConfigError, match="is a setting, not a section"):
        load_config(file, ["seed.more=3"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", b"seed = \n", "not valid TOML"),
        ("a.json", b"{", "not valid JSON"),
        ("a.toml", b"\xff\xfe", "not UTF-8"),
        ("a.yaml", b"seed: 1", "not valid TOML"),
        ("a.toml", b"seed = " + b"[" * 100_000, "not valid TOML"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.json", b"[1]", "must be a table of settings; got list"),
        ("a.json", json.dumps({"data": {"train_users": "x"}}).encode(), "train_users"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as error:
        load_config(file, ["seed=3"])
    assert str(file) in str(error.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        resolve({"seed": -1, "data": {"train_users": "few", "sauce": "nano"}})
    for name in ("seed", "data.train_users", "data.sauce"):
        assert name in str(error.value)


def test_a_folder_and_a_missing_file_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be read \(Is a directory\)"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"can't be read \(No such file"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"settings come after the file: configs/nano.toml seed=3$"):
        load_config("seed=3")

"""A grid's plan: calls, tokens and cost, without keys, weights or network."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from popi.cli import app
from popi.evaluation.grid.plan import Calls, plan_grid
from popi.evaluation.grid.settings import load_grid
from popi.models.backend import estimate_tokens
from popi.models.remote import upstream
from popi.models.remote.usage import Prices
from popi.signals.render import Templates
from popi.training.planning.shapes import PER_MESSAGE

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(upstream.Upstream, "session", lambda self: pytest.fail("a plan asks nobody"))


def test_the_transfer_grid_plans_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["evaluate", "configs/transfer.toml", "--dry-run", "root=/nowhere"])
    assert done.exit_code == 0, done.output
    for words in ("would be trained first (plug_and_play)", "elix is on the hub", "no log-probs, judged only"):
        assert words in done.output
    # One prompt each of 200 users under five methods: 1,000 responses; scored, 2,000 calls more.
    assert "generator GPT-4o-mini: 1,000 calls" in done.output
    assert "generator Llama-3.2-3B-Instruct: 3,000 calls" in done.output
    # 8 generators, 4 comparisons, both orders.
    assert f"judge gpt-4o: {8 * 4 * 200 * 2:,} calls" in done.output
    assert not Path("/nowhere").exists()


def test_calls_tokens_and_cost_of_users_at_hand(tmp_path: Path) -> None:
    pair = {"prompt": "what about rice?", "chosen": "hi there friend.", "rejected": "hey."}
    other = {"prompt": "and tea?", "chosen": "hello to you.", "rejected": "yo."}
    users = tmp_path / "users.jsonl"
    signal = {"type": "post", "text": "i like jokes."}
    users.write_text(
        "".join(json.dumps({"user_id": u, "signals": [signal], "targets": [pair, other]}) + "\n" for u in "abc")
    )
    run = tmp_path / "run.toml"
    run.write_text(
        f'name = "r"\nroot = "{tmp_path}"\n[data]\ntrain_users = 4\ntest_users = 4\n[summary]\nmax_tokens = 20\n'
    )
    file = tmp_path / "grid.toml"
    model = 'url = "https://example.org/v1"\nkey_env = "NO_KEY"\ninput_price = 2\noutput_price = 10\n'
    file.write_text(
        f'root = "{tmp_path}"\nmethods = ["popi_plug_and_play"]\n[[benchmarks]]\nconfig = "{run}"\nusers = "{users}"\n'
        f'[[generators]]\nname = "chat"\nmodel = "m"\n{model}[[judges]]\nname = "j"\nmodel = "m"\n{model}'
        "judge_tokens = 100\nmax_tokens = 50\nprompts = 1\n"
    )
    plan = plan_grid(load_grid(file))
    chat, judge = plan.calls["generator chat"], plan.calls["judge j"]
    # The first prompt of each of three users, under two methods.
    assert (chat.calls, chat.tokens_out) == (6, 6 * 50)
    templates = Templates.load("nano")  # the run's own: a model behind an API has no set
    prompts = [templates.generator_messages(p["prompt"], s) for p in (pair, other) for s in (None, "x")]
    tokens = [sum(estimate_tokens(m["content"]) + PER_MESSAGE for m in prompt) + PER_MESSAGE for prompt in prompts]
    mean = (tokens[0] + tokens[2]) / 2 + (tokens[1] + tokens[3]) / 2 + 20  # of both targets; the summary's own 20
    assert chat.tokens_in == pytest.approx(3 * mean)
    assert chat.cost == pytest.approx((2 * chat.tokens_in + 10 * 300) / 1e6)
    # Two generators (the run's own, too), one comparison, both orders.
    assert (judge.calls, judge.tokens_out) == (12, 1200)
    assert f"cost at most {chat.cost + (judge.cost or 0):,.2f}" in plan.lines()[-1]
    assert "3 users, 6 target pairs" in "\n".join(plan.lines()) and not (tmp_path / "grid").exists()


def test_calls_without_prices_have_no_cost() -> None:
    calls = Calls()
    calls.add(10, 100, 5, Prices(1, 1))
    assert calls.cost == pytest.approx(1050 / 1e6) and "cost at most 0.00" in str(calls)
    calls.add(1, 1, 1, None)
    calls.add(1, 1, 1, Prices(1, 1))
    assert calls.cost is None and "no prices given" in str(calls)
    assert (calls.calls, calls.tokens_in, calls.tokens_out) == (12, 1002, 52)

"""An adapter a user: its training step by step through plain forwards, and a base that is left as it was."""

from pathlib import Path

import pytest
import torch

from popi.config import PerUserLoraConfig
from popi.engine.scoring import pair_logps, pair_logps_plain
from popi.errors import ConfigError, RunError
from popi.generator import Generator
from popi.models.local.adapters import TRAINED, attach_adapters
from popi.nano.world import make_users
from popi.signals.types import InteractionSignal, PairSignal, PostSignal, TargetPair, User
from popi.training.objective import dpo_loss, margin
from popi.training.per_user import own_pairs, user_adapter
from popi.training.rows import draw

SETTINGS = PerUserLoraConfig(rank=4, steps=3, batch_size=2, learning_rate=5e-3, beta=0.2)


@pytest.fixture
def generator(tiny_base: Path) -> Generator:
    return Generator.from_pretrained(tiny_base, device="cpu")


@pytest.fixture(scope="module")
def user() -> User:
    return next(made.user for made in make_users(20, 0, "test") if len(own_pairs(made.user.signals)) >= 3)


def test_pairs_and_edits_are_a_users_own_pairs() -> None:
    signals = [
        PairSignal(prompt="tea?", chosen="a", rejected="b"),
        InteractionSignal(prompt="rice?", response="long answer", edit="short"),
        InteractionSignal(prompt="rice?", response="same", edit="same"),
        InteractionSignal(prompt="rice?", response="rated", rating=5.0),
        PostSignal(text="i like tea"),
    ]
    assert own_pairs(signals) == [
        TargetPair(prompt="tea?", chosen="a", rejected="b"),
        TargetPair(prompt="rice?", chosen="short", rejected="long answer"),
    ]


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # Adam makes steps of gradients that are roundings
def test_training_equals_a_plain_loop(
    precision: torch.dtype, generator: Generator, user: User, tiny_base: Path
) -> None:
    pairs = own_pairs(user.signals)
    with user_adapter(generator, pairs, SETTINGS, seed=5):
        chosen, rejected = generator.pair_logps(user.targets, [None] * len(user.targets))

    plain = Generator.from_pretrained(tiny_base, device="cpu")
    items, targets = plain.reference_items(pairs), plain.reference_items(user.targets)
    with torch.no_grad():
        references = pair_logps_plain(plain.local.model, items)
    torch.manual_seed(5)
    model = attach_adapters(plain.local.model, 4, 8.0, {TRAINED: None})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
    order = draw(len(items), 2, 3, 5)
    for step in range(3):
        picked = order[2 * step : 2 * step + 2]
        logps = pair_logps_plain(model, [items[i] for i in picked])
        loss = dpo_loss(margin(*logps, *(side[picked] for side in references)), 0.2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = pair_logps_plain(model, targets)
    assert chosen == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert rejected == pytest.approx(expected[1].tolist(), abs=1e-6)


def test_the_users_own_pairs_are_learned_and_the_base_is_left_as_it_was(generator: Generator, user: User) -> None:
    base, pairs = generator.local.model, own_pairs(user.signals)
    items = generator.reference_items(pairs)
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    flags = {name: p.requires_grad for name, p in base.named_parameters()}
    before = pair_logps(base, items, generator.local.pad_id)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    with user_adapter(generator, pairs, SETTINGS, seed=0):
        after = pair_logps(generator.local.model, items, generator.local.pad_id)
    assert torch.equal(torch.rand(1), expected), "its seed is its own"
    assert bool((margin(*after, *before) > 0).all())
    assert generator.local.model is base and not hasattr(base, "peft_config")
    assert {name: p.requires_grad for name, p in base.named_parameters()} == flags
    assert all(torch.equal(p, weights[name]) for name, p in base.named_parameters())
    assert all(torch.equal(one, two) for one, two in zip(before, pair_logps(base, items, 0), strict=True))


def test_the_base_comes_back_after_an_error(generator: Generator, user: User) -> None:
    base = generator.local.model
    with pytest.raises(KeyboardInterrupt), user_adapter(generator, own_pairs(user.signals), SETTINGS, seed=0):
        raise KeyboardInterrupt
    assert generator.local.model is base and not hasattr(base, "peft_config")


def test_a_training_that_diverges_is_an_error(generator: Generator, user: User) -> None:
    base = generator.local.model
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RunError, match="diverged.*lower its learning_rate, now 1e.30"):
        with user_adapter(generator, own_pairs(user.signals), wild, seed=0):
            pass
    assert generator.local.model is base


def test_without_pairs_there_is_no_adapter(generator: Generator) -> None:
    base = generator.local.model
    with user_adapter(generator, [], SETTINGS, seed=0):
        assert generator.local.model is base


def test_a_base_that_is_an_adapter_is_refused(generator: Generator, user: User) -> None:
    generator.local.model = attach_adapters(generator.local.model, 2, 4.0, {TRAINED: None})
    with (
        pytest.raises(ConfigError, match="is an adapter over another model"),
        user_adapter(generator, own_pairs(user.signals), SETTINGS, seed=0),
    ):
        pass

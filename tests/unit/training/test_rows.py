import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from exact import assert_exact

from popi.data.jsonl import open_users, write_users
from popi.engine.scoring import pair_logps_plain
from popi.errors import ConfigError, DataError
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.nano.world import make_users
from popi.signals.copying import copy_signals
from popi.signals.types import PairSignal, StatementSignal, User
from popi.summary import Summary
from popi.training.references import References
from popi.training.renewals import Renewal
from popi.training.rows import (
    copied_rows,
    draw,
    generator_rows,
    hold_out,
    inference_rows,
    raw_signals_rows,
    readable,
    shuffled,
    trainable,
)
from popi.training.written import one_signal_each, sample_summaries


@pytest.fixture(scope="module")
def users() -> list[User]:
    return [made.user for made in make_users(5, 0, "train", targets=3)]


@pytest.fixture
def local(tiny_base: Path) -> LocalModel:
    return LocalModel.load(tiny_base, device="cpu")


@pytest.mark.parametrize(("n", "per_step", "steps"), [(10, 3, 7), (4, 4, 5), (9, 2, 1)])
def test_draw_repeats_nobody_within_a_step(n: int, per_step: int, steps: int) -> None:
    order = draw(n, per_step, steps, seed=1)
    assert len(order) == per_step * steps and set(order) <= set(range(n))
    batches = [order[i : i + per_step] for i in range(0, len(order), per_step)]
    assert all(len(set(batch)) == per_step for batch in batches)
    counts = Counter(order)
    passes = -(-steps // (n // per_step))
    assert max(counts.values()) <= passes  # once a pass
    assert order == draw(n, per_step, steps, seed=1) != draw(n, per_step, steps, seed=2)


def test_draws_are_those_of_whole_permutations() -> None:
    """What runs were trained on before permutations were drawn as far as they are needed."""

    def whole(n: int, per_step: int, steps: int, seed: int) -> list[int]:
        generator, order = random.Random(seed), list[int]()
        while len(order) < per_step * steps:
            order += generator.sample(range(n), n)[: n - n % per_step]
        return order[: per_step * steps]

    for n, per_step, steps, seed in [(1, 1, 3, 0), (7, 3, 9, 1), (40, 7, 4, 2), (5000, 8, 3, 3), (500, 499, 4, 4)]:
        assert draw(n, per_step, steps, seed) == whole(n, per_step, steps, seed)
    assert list(shuffled(300, random.Random(5))) == random.Random(5).sample(range(300), 300)


def test_a_few_of_a_billion_users_are_drawn_at_once() -> None:
    assert len(set(draw(10**9, 4, 25, 0))) == 100


def test_users_on_disk_are_held_out_and_drawn_as_those_in_memory(tmp_path: Path, local: LocalModel) -> None:
    people = [made.user.model_copy(update={"user_id": f"u{n}"}) for n, made in enumerate(make_users(30, 0, "train"))]
    long = StatementSignal(text="word " * 400)
    people[3] = User(user_id="u3", signals=[long], targets=people[3].targets)
    people[4] = User(user_id="u4", signals=people[4].signals)
    write_users(tmp_path / "users.jsonl", people)
    stored = open_users(tmp_path / "users.jsonl")
    model = InferenceModel(local, "nano", token_budget=200)
    on_disk, in_memory = (
        [readable(part, model) for part in hold_out(trainable(some), 6, seed=3)] for some in (stored, people)
    )
    assert on_disk == in_memory and [len(part) for part in in_memory] in ([22, 6], [23, 5])
    assert not isinstance(on_disk[0], list) and isinstance(in_memory[0], list)


def test_windows_of_a_user_are_held_out_together(users: list[User]) -> None:
    windows = [one.model_copy(update={"user_id": name}) for one, name in zip(users, "aabbc", strict=True)]
    for seed in range(5):
        kept, held = hold_out(windows, 1, seed)
        names = random.Random(f"held out/{seed}").sample(["a", "b", "c"], 1)
        assert [one.user_id for one in held] == [name for name in "aabbc" if name in names]
        assert [one.user_id for one in kept] == [name for name in "aabbc" if name not in names]


def test_draw_from_too_few() -> None:
    with pytest.raises(ConfigError, match="needs 4 different.*there are 3"):
        draw(3, 4, 1, 0)


def test_users_without_targets(users: list[User]) -> None:
    bare = User(user_id="bare", signals=users[0].signals)
    assert trainable([users[0], bare]) == [users[0]]
    with pytest.raises(DataError, match="none of the 1 training users has target pairs"):
        trainable([bare])


def test_references_are_of_the_plain_prompt_and_computed_once(
    precision: torch.dtype, users: list[User], local: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Generator(local)
    references = References(tmp_path / "references.jsonl")
    references.compute(users[:2], base)
    items = [base.item(base.prompt_ids(target.prompt, None), target) for target in users[1].targets]
    with torch.no_grad():
        chosen, rejected = pair_logps_plain(local.model, items)
    found = references.targets(users[1])
    assert_exact(torch.tensor([t.ref_chosen for t in found]), chosen)
    assert_exact(torch.tensor([t.ref_rejected for t in found]), rejected)

    again = References(tmp_path / "references.jsonl")
    assert [user.user_id for user in again.missing(users)] == [user.user_id for user in users[2:]]
    assert again.targets(users[1]) == found  # through the file, to the bit
    monkeypatch.setattr("popi.generator.Generator.pair_logps", lambda *_: pytest.fail("computed again"))
    again.compute(users[:2], base)


def test_windows_of_one_user_have_references_of_their_own(
    precision: torch.dtype, users: list[User], local: LocalModel, tmp_path: Path
) -> None:
    windows = [user.model_copy(update={"user_id": "one"}) for user in users[:2]]
    base = Generator(local)
    references = References(tmp_path / "references.jsonl")
    references.compute(windows, base)
    for window in windows:
        with torch.no_grad():
            chosen, rejected = pair_logps_plain(local.model, base.reference_items(window.targets))
        found = References(tmp_path / "references.jsonl").targets(window)
        assert_exact(torch.tensor([t.ref_chosen for t in found]), chosen)
        assert_exact(torch.tensor([t.ref_rejected for t in found]), rejected)


def test_inference_rows(users: list[User], local: LocalModel, tmp_path: Path) -> None:
    base = Generator(local)
    references = References(tmp_path / "references.jsonl")
    references.compute(users, base)
    model = InferenceModel(local, max_tokens=6)
    rows = inference_rows(users, [3, 1, 3], model, references, targets_per_summary=2, seed=0)
    assert [row.user_id for row in rows] == [users[i].user_id for i in (3, 1, 3)]
    assert rows[0].prompt_ids == tuple(model.prompt_ids(users[3].signals)[0])
    for row, i in zip(rows, (3, 1, 3), strict=True):
        assert len(row.targets) == 2 and set(row.targets) <= set(references.targets(users[i]))
    assert rows == inference_rows(users, [3, 1, 3], model, references, targets_per_summary=2, seed=0)
    assert len(inference_rows(users, [0], model, references, 9, 0)[0].targets) == 3


def test_each_summary_stands_beside_its_target(users: list[User], local: LocalModel, tmp_path: Path) -> None:
    generator = Generator(local)
    references = References(tmp_path / "references.jsonl")
    references.compute(users[:2], generator)
    summaries = [[f"likes cats {j}" for j in range(3)], ["likes dogs"] * 3]
    rows = generator_rows(users[:2], summaries, generator, references)
    assert len(rows) == 6 and rows[1].summary == "likes cats 1"
    target = users[0].targets[1]
    assert rows[1].item == generator.items([target], "likes cats 1")[0]
    plain = generator_rows(users[:2], None, generator, references)
    assert plain[1].item == generator.reference_items([target])[0]
    assert (plain[1].ref_chosen, plain[1].ref_rejected) == (rows[1].ref_chosen, rows[1].ref_rejected)


def test_raw_signals_stand_in_the_prompt_as_far_as_they_fit(
    users: list[User], local: LocalModel, tmp_path: Path
) -> None:
    generator = Generator(local)
    references = References(tmp_path / "references.jsonl")
    references.compute(users[:2], generator)
    for budget, fits in ((2000, True), (100, False)):
        rows = raw_signals_rows(users[:2], generator, references, budget)
        assert [row.user for row in rows] == [0, 0, 0, 1, 1, 1]
        kept, dropped = generator.templates.fit(users[1].signals, budget, generator.count_tokens)
        assert kept and (not dropped) == fits
        target = users[1].targets[2]
        messages = generator.templates.raw_signals_messages(target.prompt, kept)
        assert rows[5].item == generator.item(local.encode_chat(messages), target)
        referenced = references.targets(users[1])[2]  # of the plain prompt, as in every method
        assert (rows[5].ref_chosen, rows[5].ref_rejected) == (referenced.ref_chosen, referenced.ref_rejected)


def test_one_summary_for_every_target(users: list[User], local: LocalModel) -> None:
    few = [users[0], users[1].model_copy(update={"targets": users[1].targets[:1]})]
    counted: list[int] = []
    torch.manual_seed(0)
    written = sample_summaries(few, InferenceModel(local, max_tokens=5), 1.0, 1.0, counted.append, batch_size=1)
    assert [len(texts) for texts in written] == [3, 1] and counted == [1, 2]
    assert len(set(written[0])) > 1  # sampled, not greedy


def test_users_none_of_whose_signals_fits(users: list[User], local: LocalModel) -> None:
    long = StatementSignal(text="i like long walks " * 200)
    beyond = users[1].model_copy(update={"signals": [long]})
    with_one_that_fits = users[2].model_copy(update={"signals": [long, *users[2].signals]})
    silent = users[3].model_copy(update={"signals": []})
    model = InferenceModel(local, max_tokens=5, token_budget=300)
    assert readable([users[0], beyond, with_one_that_fits, silent], model) == [users[0], with_one_that_fits]
    with pytest.raises(DataError, match="none of the 2 training users has a signal that fits signals.token_budget=300"):
        readable([beyond, silent], model)

    torch.manual_seed(0)
    written = sample_summaries([users[0], beyond, silent], model, 1.0, 1.0, lambda done: None)
    nothing = [model.templates.no_preference] * 3
    assert written[1:] == [nothing, nothing] and written[0] != nothing
    later = Renewal(Summary("likes tea.", 3, signals_total=4), (long,))
    renewed = sample_summaries([users[0], beyond], model, 1.0, 1.0, lambda done: None, renewals=[None, later])
    assert renewed[1] == ["likes tea."] * 3


def test_conditioned_rows_and_summaries_are_for_one_target(
    users: list[User], local: LocalModel, tmp_path: Path
) -> None:
    references = References(tmp_path / "references.jsonl")
    references.compute(users, Generator(local))
    model = InferenceModel(local, max_tokens=5, conditioned=True)
    order = [3, 1, 3, 3]
    rows = inference_rows(users, order, model, references, targets_per_summary=1, seed=0)
    plain = inference_rows(users, order, InferenceModel(local, max_tokens=5), references, 1, 0)
    for row, i, other in zip(rows, order, plain, strict=True):
        [target] = row.targets
        assert row.targets == other.targets, "the same targets are drawn"
        assert row.prompt_ids == tuple(model.prompt_ids(users[i].signals, target.pair.prompt)[0]) != other.prompt_ids
    assert len({row.prompt_ids for row in rows if row.user_id == users[3].user_id}) > 1

    few = [users[0], users[1].model_copy(update={"targets": users[1].targets[:1]})]
    counted: list[int] = []
    written = sample_summaries(few, model, 1e-6, 1.0, counted.append, batch_size=2)
    assert counted == [2] and [len(texts) for texts in written] == [3, 1]
    for user, texts in zip(few, written, strict=True):
        assert texts == [model.summarize(user.signals, prompt=target.prompt).text for target in user.targets]


def test_copied_signals_as_a_summary(users: list[User], local: LocalModel, tmp_path: Path) -> None:
    generator = Generator(local)
    references = References(tmp_path / "references.jsonl")
    references.compute(users[:2], generator)
    rows = copied_rows(users[:2], generator, references, 300, targets_per_summary=3)
    text, dropped = copy_signals(generator.templates, users[1].signals, 300, generator.count_tokens)
    assert text and [row.group for row in rows] == [0, 0, 0, 1, 1, 1]
    assert rows[4].summary == text and rows[4].item == generator.items([users[1].targets[1]], text)[0]


def test_rows_and_summaries_of_a_model_that_reads_one_signal_at_a_time(
    users: list[User], local: LocalModel, tmp_path: Path
) -> None:
    long = StatementSignal(text="i like long walks " * 200)
    short = StatementSignal(text="i like short walks.")
    pairs = [signal for signal in users[1].signals if isinstance(signal, PairSignal)][:3]
    user = users[1].model_copy(update={"signals": [long, short, *pairs]})
    model = InferenceModel(local, max_tokens=5, token_budget=300, per_signal=True)
    drawn = one_signal_each([user], [0] * 60, model, "targets", seed=0)
    assert {signal.model_dump_json() for one in drawn for signal in one.signals} == {
        signal.model_dump_json() for signal in (short, *pairs)
    }, "one signal that fits for each row"
    assert all(len(one.signals) == 1 and one.targets == user.targets for one in drawn)
    own = one_signal_each([user], [0] * 60, model, "signal", seed=0)
    for one in own:
        [signal], [target] = one.signals, one.targets
        assert isinstance(signal, PairSignal) and (target.chosen, target.rejected) == (signal.chosen, signal.rejected)
    words = users[0].model_copy(update={"signals": [short]})
    assert readable([words, user], model, only_pairs=True) == [user]
    assert readable([words, user], model) == [words, user]
    with pytest.raises(DataError, match="none of the 1 training users has a preference pair that fits"):
        readable([words], model, only_pairs=True)
    references = References(tmp_path / "references.jsonl")
    references.compute(own[:2], Generator(local))
    [row] = inference_rows(own, [1], model, references, targets_per_summary=2, seed=0)
    assert row.prompt_ids == tuple(model.prompt_ids(own[1].signals)[0])
    assert [target.pair for target in row.targets] == own[1].targets

    silent = users[2].model_copy(update={"signals": []})
    written = sample_summaries([user, silent], model, 1e-6, 1.0, lambda done: None, batch_size=2)
    greedy = model.summarize(user.signals).text
    assert written == [[greedy] * 3, [model.templates.no_preference] * 3]
    torch.manual_seed(0)
    sampled = sample_summaries([user], model, 1.0, 1.0, lambda done: None)
    assert len(set(sampled[0])) == 3

"""Soft prompts against plain whole sequences, and user embeddings by hand."""

from pathlib import Path

import pytest
import torch
from exact import assert_exact

from popi.engine.scoring import ScoringItem, soft_pair_logps
from popi.engine.soft_prompts import with_soft_prompts
from popi.engine.tree import pack, segment_logps
from popi.errors import ModelError
from popi.generator import Generator
from popi.models.local.user_embedding import (
    FILE,
    SignalsEmbedding,
    UserEmbedding,
    UserIdEmbedding,
    generic_embedding,
    hidden_states,
)
from popi.nano.world import make_users
from popi.signals.types import TargetPair, User

K = 3


@pytest.fixture
def base(tiny_base: Path) -> Generator:
    return Generator.from_pretrained(tiny_base, device="cpu")


@pytest.fixture(scope="module")
def users() -> list[User]:
    return [made.user for made in make_users(3, 0, "test", targets=2)]


@pytest.fixture
def soft() -> torch.Tensor:
    return 0.3 * torch.randn(4, K, 32, generator=torch.Generator().manual_seed(1))


def items_of(base: Generator, users: list[User]) -> list[ScoringItem]:
    return [item for user in users[:2] for item in base.reference_items(user.targets)]


def plain_logp(
    model: torch.nn.Module, soft: torch.Tensor, prefix: tuple[int, ...], response: tuple[int, ...]
) -> torch.Tensor:
    """Summed log-prob of a response behind (k, d) vectors and a prefix, as one whole sequence of embeddings."""
    ids = torch.tensor([*prefix, *response])
    embedded = torch.cat([soft, model.get_input_embeddings()(ids)])[None]
    logps = torch.log_softmax(model(inputs_embeds=embedded).logits[0], -1)
    before = len(soft) + len(prefix) - 1
    return logps[before:-1].gather(1, torch.tensor(response)[:, None]).sum()


def test_vectors_take_the_places_asked_for() -> None:
    embed = torch.nn.Embedding(3, 1)
    embed.weight.data = torch.tensor([[0.0], [1.0], [2.0]])
    ids = torch.tensor([[1, 2, 0, 0], [0, 1, 2, 1]])
    vectors = torch.tensor([[[7.0], [8.0]], [[9.0], [5.0]]])
    assert with_soft_prompts(embed, ids, vectors)[..., 0].tolist() == [[7, 8, 0, 0], [9, 5, 2, 1]]
    placed = with_soft_prompts(embed, ids, vectors, torch.tensor([2, 1]))
    assert placed[..., 0].tolist() == [[1, 2, 7, 8], [0, 9, 5, 1]]


def test_scores_equal_whole_sequences(
    precision: torch.dtype, base: Generator, users: list[User], soft: torch.Tensor
) -> None:
    items, model = items_of(base, users), base.local.model
    found = soft_pair_logps(model, items, soft, base.local.pad_id, batch_size=3)
    for side, name in enumerate(("chosen", "rejected")):
        assert_exact(
            found[side],
            torch.stack([plain_logp(model, soft[i], item.prefix, getattr(item, name)) for i, item in enumerate(items)]),
        )


def test_gradients_equal_whole_sequences(
    precision: torch.dtype, base: Generator, users: list[User], soft: torch.Tensor
) -> None:
    items, model = items_of(base, users), base.local.model

    def gradients(sums: torch.Tensor, vectors: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        (sums * torch.arange(1.0, len(sums) + 1)).sum().backward()
        return [vectors.grad.clone(), *(p.grad.clone() for p in model.parameters())]

    ours, plain = soft.clone().requires_grad_(), soft.clone().requires_grad_()
    batch = pack([item.with_soft_prompt(K, base.local.pad_id).tree for item in items], base.local.pad_id)
    batch.soft = ours
    whole = [
        plain_logp(model, plain[i], item.prefix, response)
        for i, item in enumerate(items)
        for response in (item.chosen, item.rejected)
    ]
    found = gradients(segment_logps(model, batch), ours)
    assert_exact(found, gradients(torch.stack(whole), plain))


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_greedy_answers_equal_a_plain_loop(
    precision: torch.dtype, base: Generator, users: list[User], soft: torch.Tensor
) -> None:
    prompts = [base.prompt_ids("tea?", None), base.prompt_ids(users[0].targets[0].prompt, "likes jokes")]
    assert len(prompts[0]) != len(prompts[1])
    drawn = base.local.generate(prompts, max_new_tokens=5, soft=soft[:2])
    embed = base.local.model.get_input_embeddings()
    for prompt, vectors, [found] in zip(prompts, soft, drawn, strict=False):
        ids = list(prompt)
        for token in found:
            embedded = torch.cat([vectors, embed(torch.tensor(ids))])[None]
            assert int(base.local.model(inputs_embeds=embedded).logits[0, -1].argmax()) == token
            ids.append(token)


# -- embeddings ---------------------------------------------------------------------------------------------------


def named(user_id: str) -> User:
    return User(user_id=user_id, signals=[])


def test_a_user_that_was_not_trained_on_gets_the_generic_embedding(base: Generator) -> None:
    embedding = UserIdEmbedding(torch.tensor([[1.0, 2.0]]), [UserIdEmbedding.key(named(u)) for u in ("a", "b", "a")])
    assert embedding.offsets.shape == (2, 1, 2)  # windows of one user share a row
    embedding.offsets.data = torch.tensor([[[10.0, 20.0]], [[0.5, 0.0]]])
    soft = embedding.soft_prompts([named("b"), named("stranger"), named("a")], base, token_budget=9)
    assert soft.tolist() == [[[1.5, 2.0]], [[1.0, 2.0]], [[11.0, 22.0]]]
    assert embedding(embedding.unknown()[None]).tolist() == [[[1.0, 2.0]]]


def test_an_unknown_user_trains_the_generic_embedding_alone() -> None:
    embedding = UserIdEmbedding(torch.zeros(1, 2), ["a", "b"])
    embedding(torch.tensor([1, -1])).sum().backward()
    assert embedding.generic.grad.tolist() == [[2.0, 2.0]]
    assert embedding.offsets.grad.tolist() == [[[0.0, 0.0]], [[1.0, 1.0]]]


def test_an_embedding_from_signals_by_hand() -> None:
    states = torch.tensor([[1.0, 4.0], [3.0, 4.0], [float("nan")] * 2])
    embedding = SignalsEmbedding.of(torch.tensor([[1.0, 2.0]]), states)
    inputs = embedding.standardised(states)
    assert inputs.tolist() == [[-1, 0], [1, 0], [0, 0]]  # mean (2, 4), deviation (1, tiny); no signals: 0
    assert embedding(inputs).tolist() == 3 * [[[1.0, 2.0]]]  # nothing learned yet
    embedding.map.weight.data = torch.tensor([[5.0, 9.0], [0.5, 9.0]])
    assert embedding(inputs).tolist() == [[[-4.0, 1.5]], [[6.0, 2.5]], [[1.0, 2.0]]]
    assert embedding(embedding.unknown()[None]).tolist() == [[[1.0, 2.0]]]


def test_states_are_means_over_the_rendered_signals(precision: torch.dtype, base: Generator, users: list[User]) -> None:
    everyone = [users[0], named("nothing"), users[1].model_copy(update={"signals": users[1].signals[:2]})]
    told: list[int] = []
    found = hidden_states(everyone, base, token_budget=2000, batch_size=2, report=told.append)
    assert told == [2] and found[1].isnan().all()
    for i in (0, 2):
        ids = base.local.format.tokens(base.templates.signals_text(everyone[i].signals))
        with torch.no_grad():
            output = base.local.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states = output.hidden_states[-1][0]
        assert_exact(found[i], states.mean(0), of=float(states.abs().max()))
    kept, dropped = base.templates.fit(users[0].signals, 100, base.count_tokens)
    assert kept and dropped, "the budget drops signals"
    short = users[0].model_copy(update={"signals": kept})
    assert_exact(hidden_states([users[0]], base, 100), hidden_states([short], base, 2000))


def test_it_begins_at_embeddings_of_the_vocabulary(base: Generator) -> None:
    weights = base.local.model.get_input_embeddings().weight
    drawn = generic_embedding(weights, 4, seed=3)
    assert drawn.shape == (4, 32) and torch.equal(drawn, generic_embedding(weights, 4, seed=3))
    assert not torch.equal(drawn, generic_embedding(weights, 4, seed=4))
    assert all((weights == row).all(1).any() for row in drawn)


@pytest.mark.parametrize("source", ["user_id", "signals"])
def test_saved_and_loaded(source: str, tmp_path: Path, users: list[User], base: Generator) -> None:
    generic = torch.randn(K, 32)
    if source == "user_id":
        embedding = UserIdEmbedding(generic, [UserIdEmbedding.key(user) for user in users])
        embedding.offsets.data.normal_()
    else:
        embedding = SignalsEmbedding.of(generic, hidden_states(users, base, 2000))
        embedding.map.weight.data.normal_()
    embedding.save(tmp_path)
    again = UserEmbedding.load(tmp_path)
    assert type(again) is type(embedding)
    asked = [*users, named("stranger")]
    assert torch.equal(again.soft_prompts(asked, base, 2000), embedding.soft_prompts(asked, base, 2000))
    content = (tmp_path / FILE).read_bytes()
    assert users[0].user_id.encode() not in content
    again.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert UserEmbedding.load(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"{")
    with pytest.raises(ModelError, match="can't be read.*train this phase again"):
        UserEmbedding.load(tmp_path)


def test_a_generator_with_embeddings_takes_everyone_for_the_generic_user(
    precision: torch.dtype, base: Generator
) -> None:
    target = TargetPair(prompt="what about tea?", chosen="hi there.", rejected="hey.")
    embedding = UserIdEmbedding(0.3 * torch.randn(K, 32), ["a"])
    generator = Generator(base.local, "nano", embedding)
    chosen, rejected = generator.pair_logps([target], [None])
    [item] = base.reference_items([target])
    with torch.no_grad():
        for found, response in ((chosen, item.chosen), (rejected, item.rejected)):
            whole = plain_logp(base.local.model, embedding.generic, item.prefix, response)
            assert_exact(torch.tensor(found), whole[None])
    assert chosen != base.pair_logps([target], [None])[0]
    given = base.local.generate([item.prefix], max_new_tokens=4, soft=embedding.generic.detach()[None])
    assert generator.generate("what about tea?", max_new_tokens=4) == base.local.decode(given[0][0])

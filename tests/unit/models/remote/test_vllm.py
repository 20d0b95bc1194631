"""Log-probs off the wire against popi's own, on the nano base: a server of our own computes them for real."""

from functools import cache
from typing import Any

import pytest
import torch
from exact import assert_exact
from fake_upstream import FakeUpstream, status

from popi.engine.scoring import pair_logps
from popi.errors import BatchError, ConfigError, UpstreamError
from popi.generator import Generator
from popi.models.local.model import LocalModel
from popi.models.remote.api import ApiModel
from popi.models.remote.retries import Retries
from popi.models.remote.vllm import VllmScorer, read_logps
from popi.nano.world import make_users
from popi.signals.render import Templates
from popi.signals.types import TargetPair
from popi.training.objective import margin, summary_reward

SUMMARY = "likes short answers. likes jokes."


@cache
def nano(dtype: torch.dtype) -> LocalModel:
    return LocalModel.load("nano")


@pytest.fixture
def local() -> LocalModel:
    return nano(torch.get_default_dtype())


@pytest.fixture
def server(upstream: FakeUpstream, local: LocalModel) -> FakeUpstream:
    upstream.local = local
    return upstream


@pytest.fixture(scope="module")
def targets() -> list[TargetPair]:
    return [target for user in make_users(3, 0, "test") for target in user.user.targets][:6]


def scorer(server: FakeUpstream, **settings: Any) -> VllmScorer:
    api = ApiModel.connect(f"{server.url}/v1", "nano", retries=Retries(limit=1, base_s=0.001), concurrency=2)
    return VllmScorer(api, **settings)


def remote_generator(server: FakeUpstream, templates: str | Templates, **settings: Any) -> Generator:
    made = scorer(server, **settings)
    return Generator(made.api, templates, scorer=made)


@pytest.mark.parametrize("encode", ["here", "on the server"])
def test_remote_log_probs_are_the_local_ones(
    precision: torch.dtype, server: FakeUpstream, local: LocalModel, targets: list[TargetPair], encode: str
) -> None:
    generator = Generator(local)
    paths: list[str] = []
    for summary in (SUMMARY, None):
        here = pair_logps(local.model, generator.items(targets, summary), local.pad_id)
        encoder = local if encode == "here" else None
        remote = remote_generator(server, generator.templates, encoder=encoder)
        ours = remote.pair_logps(targets, [summary] * len(targets))
        assert_exact([torch.tensor(side) for side in ours], here)
        # The nano base is sure of its turns' ends: their log-prob would not be missed, so the ids are compared too.
        items = generator.items(targets, summary)
        wanted = {(*item.prefix, *response) for item in items for response in (item.chosen, item.rejected)}
        sent = {tuple(r.body["prompt"]) for r in server.received if r.path == "/v1/completions"}
        assert sent == wanted
        paths += [request.path for request in server.received]
        server.received.clear()
    assert ("/tokenize" in paths) == (encode == "on the server")


def test_margins_and_rewards_are_those_of_training(
    precision: torch.dtype, server: FakeUpstream, local: LocalModel, targets: list[TargetPair]
) -> None:
    generator = Generator(local)
    with_summary = pair_logps(local.model, generator.items(targets, SUMMARY), local.pad_id)
    h = margin(*with_summary, *pair_logps(local.model, generator.reference_items(targets), local.pad_id))
    assert h.abs().max() > 0.1
    remote = remote_generator(server, generator.templates)
    size = max(float(side.abs().max()) for side in with_summary)
    assert_exact(torch.tensor(remote.margins(targets, [SUMMARY] * len(targets))), h, of=size)
    rewards = remote.rewards(targets, [SUMMARY] * len(targets), beta=0.1)
    assert_exact(torch.tensor(rewards), summary_reward(h, 0.1), of=size)


def test_rewards_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Generator.from_api("http://localhost", "m")
    monkeypatch.setattr(remote, "margins", lambda *_: [-1e5, 0.0, 1e5])
    h = torch.tensor([-1e5, 0.0, 1e5])
    assert remote.rewards([], [], 1.0) == pytest.approx(summary_reward(h, 1.0).tolist())


def test_every_text_is_sent_once(server: FakeUpstream, targets: list[TargetPair]) -> None:
    remote = remote_generator(server, "nano")
    first = remote.pair_logps(targets[:1] * 3, [SUMMARY] * 3)
    paths = [request.path for request in server.received]
    # prompt and two responses, on top of the three that find the end of a turn
    assert (paths.count("/tokenize"), paths.count("/detokenize"), paths.count("/v1/completions")) == (6, 1, 2)
    assert remote.pair_logps(targets[:1], [SUMMARY]) == (first[0][:1], first[1][:1])
    assert [request.path for request in server.received[len(paths) :]] == ["/v1/completions"] * 2


def test_the_request_asks_for_the_models_own_distribution(server: FakeUpstream, local: LocalModel) -> None:
    scorer(server, encoder=local).logps([([{"role": "user", "content": "tell me about tea."}], "tea.")])
    (request,) = server.received
    assert all(isinstance(token, int) for token in request.body["prompt"])
    wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "prompt_logprobs": 0}
    assert request.body.items() >= wanted.items()
    assert request.body["cache_salt"]


def test_tokens_are_accounted(server: FakeUpstream, local: LocalModel) -> None:
    made = scorer(server, encoder=local)
    made.logps([([{"role": "user", "content": "tell me about tea."}], "tea.")])
    usage = made.api.usage
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (1, len(server.received[0].body["prompt"]), 1)
    assert usage.uncounted == 0


def test_what_could_not_be_scored_leaves_the_rest(server: FakeUpstream, local: LocalModel) -> None:
    server.faults = [None, status(400, "too long")]
    made = scorer(server, encoder=local)
    made.api.upstream.concurrency = 1
    messages = [{"role": "user", "content": "tell me about tea."}]
    with pytest.raises(BatchError) as error:
        made.logps([(messages, "tea."), (messages, "bees."), (messages, "cats.")])
    assert [isinstance(result, float) for result in error.value.results] == [True, False, True]


def test_a_template_that_hides_the_end_of_a_turn_is_refused(server: FakeUpstream, local: LocalModel) -> None:
    messages = [{"role": "user", "content": "tell me about tea."}]
    wanted = scorer(server).logps([(messages, "tea.")])
    server.change = lambda answer: {"prompt": "\n"} if "prompt" in answer else answer
    with pytest.raises(UpstreamError, match="end_id"):
        scorer(server).logps([(messages, "tea.")])
    assert scorer(server, end_id=local.end_id).logps([(messages, "tea.")]) == wanted


def test_anthropics_protocol_scores_nothing() -> None:
    with pytest.raises(ConfigError, match="openai"):
        VllmScorer(ApiModel.connect("https://example.org", "m", "anthropic"))


def entry(logp: Any) -> dict[str, Any]:
    return {"logprob": logp, "rank": 1, "decoded_token": "x"}


GOOD: list[Any] = [None, {"5": entry(-1.5)}, {"6": entry(-2.0), "9": entry(-0.1)}]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "choices"),
        ({"choices": []}, "choices"),
        ({"choices": [{"text": "x"}]}, "no prompt_logprobs"),
        ({"choices": [{"prompt_logprobs": GOOD[:2]}]}, "3 were sent, 2 scored"),
        ({"choices": [{"prompt_logprobs": [*GOOD, {"7": entry(-1)}]}]}, "3 were sent, 4 scored"),
        ({"choices": [{"prompt_logprobs": GOOD, "prompt_token_ids": [4, 5, 7]}]}, "did not score the tokens"),
        ({"choices": [{"prompt_logprobs": [None, {"5": entry(-1)}, {"7": entry(-1)}]}]}, "token 6"),
        ({"choices": [{"prompt_logprobs": [None, None, {"6": entry(-1)}]}]}, "token 5"),
        ({"choices": [{"prompt_logprobs": [None, {"5": entry(-9999.0)}, {"6": entry(-1)}]}]}, "can't be -9999"),
        ({"choices": [{"prompt_logprobs": [None, {"5": entry(float("nan"))}, {"6": entry(-1)}]}]}, "can't be nan"),
        ({"choices": [{"prompt_logprobs": [None, {"5": entry(0.7)}, {"6": entry(-1)}]}]}, "can't be 0.7"),
        ({"choices": [{"prompt_logprobs": [None, {"5": entry("low")}, {"6": entry(-1)}]}]}, "token 5"),
    ],
)
def test_a_mismatch_is_an_error_and_not_a_number(answer: dict[str, Any], words: str) -> None:
    with pytest.raises(UpstreamError, match=words):
        read_logps(answer, [4, 5, 6])


def test_log_probs_are_read_of_the_tokens_that_were_sent() -> None:
    assert read_logps({"choices": [{"prompt_logprobs": GOOD}]}, [4, 5, 6]) == [-1.5, -2.0]
    assert read_logps({"choices": [{"prompt_logprobs": GOOD, "prompt_token_ids": [4, 5, 6]}]}, [4, 5, 6])[1] == -2.0


def test_each_log_prob_or_its_error(server: FakeUpstream, local: LocalModel, targets: list[TargetPair]) -> None:
    remote = remote_generator(server, "nano")
    pairs = [(Generator(local).templates.generator_messages(target.prompt, None), target) for target in targets[:3]]
    whole = remote.score_each(pairs)
    assert whole == list(zip(*remote.score(pairs), strict=True))
    again = remote_generator(server, "nano")
    server.faults = [status(404, "no model")] * 20
    lost = again.score_each(pairs)  # not even the end of a turn could be asked for
    assert len(lost) == 3 and all(isinstance(one, UpstreamError) and "no model" in str(one) for one in lost)
    server.faults = []
    assert again.score_each(pairs) == whole
    server.faults = [status(400, "too long")]
    counted = remote.prompt_tokens_each(
        [messages for messages, _ in [*pairs, ([{"role": "user", "content": "hi"}], 0)]]
    )
    assert [isinstance(one, UpstreamError) for one in counted] == [False] * 3 + [True]

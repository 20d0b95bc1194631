"""`popi evaluate GRID --dry-run`: a grid's training, scoring, API calls and cost; needs no weights, key or network.

Tokens are estimated (`popi.models.backend.estimate_tokens`), answers counted at their maximum length, and finished
work is not deducted. So the costs are upper bounds, except for errors of that estimate and for models whose reasoning
exceeds their `max_tokens`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from popi.config import RunConfig
from popi.data.users import Person
from popi.evaluation.grid.benchmarks import Benchmark, evaluation_config, is_trained, missing, opened
from popi.evaluation.grid.cells import Cell, cells_of
from popi.evaluation.grid.judged import applies, pairs_of
from popi.evaluation.grid.settings import GridBenchmark, GridConfig, GridGenerator, GridJudge
from popi.evaluation.judge.prompt import JudgePrompt
from popi.evaluation.judge.question import Question, persona_for
from popi.evaluation.judge.responses import asked
from popi.evaluation.methods import METHODS, plain_prompts, raw_signals
from popi.evaluation.models import trained_models
from popi.evaluation.users import benchmark_of, held_out
from popi.models.backend import Messages, estimate_tokens
from popi.models.remote.usage import Prices
from popi.signals.render import Templates
from popi.training.planning.shapes import ASSUMED_PROMPT, ASSUMED_RESPONSE, LOOKED_AT, PER_MESSAGE, unavailable
from popi.training.templates import template_of, with_template


@dataclass
class Calls:
    """Upper bounds on the calls to a model behind an API."""

    calls: int = 0
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    cost: float | None = 0.0

    def add(self, calls: float, tokens_in: float, tokens_out: float, prices: Prices | None) -> None:
        """Add calls with that many tokens each."""
        self.calls += round(calls)
        self.tokens_in += calls * tokens_in
        self.tokens_out += calls * tokens_out
        if prices is None:
            self.cost = None if calls else self.cost
        elif self.cost is not None:
            self.cost += calls * (tokens_in * prices.input + tokens_out * prices.output) / 1e6

    def __str__(self) -> str:
        tokens = f"{self.tokens_in:,.0f} tokens in, at most {self.tokens_out:,.0f} out"
        return f"{self.calls:,} calls, {tokens}" + (
            f", cost at most {self.cost:,.2f}" if self.cost is not None else ", no prices given"
        )


@dataclass
class GridPlan:
    """The plan: lines for the terminal, and the calls to each model behind an API."""

    grid: GridConfig
    details: list[str] = field(default_factory=list)
    calls: dict[str, Calls] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The plan for the terminal."""
        lines = [f"grid       {self.grid.directory}", *self.details]
        lines += [f"api        {name}: {calls}" for name, calls in self.calls.items()]
        if not self.calls:
            return [*lines, "total      no API calls"]
        total = sum(calls.calls for calls in self.calls.values())
        known = [calls.cost for calls in self.calls.values() if calls.cost is not None]
        lacking = [name for name, calls in self.calls.items() if calls.cost is None]
        cost = f"cost at most {sum(known):,.2f}" if known else "no prices given"
        if known and lacking:
            cost += f", without {', '.join(lacking)}, for which no prices are given"
        return [*lines, f"total      {total:,} calls; {cost}; tokens are estimates, finished work is not deducted"]


def plan_grid(grid: GridConfig) -> GridPlan:
    """Plan a grid.

    Raises:
        ConfigError, RunError: settings are wrong, or an existing run has other settings.
        DataError: the users are available and have problems.
    """
    plan = GridPlan(grid)
    for entry in grid.benchmarks:
        if grid.skip_missing and (reason := missing(entry)):
            plan.details.append(f"benchmark  {entry.label}: would be skipped: {reason}")
            continue
        benchmark, shape = _benchmark(entry, grid, plan)
        for cell in cells_of(benchmark, grid):
            _plan_cell(cell, shape, grid, plan)
    return plan


@dataclass(frozen=True)
class Shape:
    """A benchmark's number of users and length of texts; measured if the users are available.

    Attributes:
        config: the run's config.
        people: the users; empty if they are not available.
        users, targets: total number of windows and of targets.
        response: mean tokens of a response in the data.
    """

    config: RunConfig
    people: Sequence[Person]
    users: int
    targets: int
    response: float

    def asked(self, prompts: int | None) -> int:
        """Number of task prompts to answer, given the maximum per user."""
        if self.people:
            return len(asked(self.people, prompts))
        return min(self.targets, self.users * prompts) if prompts is not None else self.targets

    @property
    def looked_at(self) -> Sequence[Person]:
        return self.people[:: max(1, -(-len(self.people) // LOOKED_AT))]


def _benchmark(entry: GridBenchmark, grid: GridConfig, plan: GridPlan) -> tuple[Benchmark, Shape]:
    if entry.run is not None:
        run = opened(entry)
        config, state = run.config, f"run {run.path}, trained: {', '.join(run.methods())}"
        trained = trained_models(run)
    else:
        config = with_template(entry.run_config())
        done = is_trained(config)
        state = f"run {config.directory}" + (
            f", trained: {', '.join(config.training.orders)}"
            if done
            else f" would be trained first ({', '.join(config.training.orders)}); for its cost: "
            f"popi train {entry.config} --dry-run"
        )
        trained = dict.fromkeys(config.training.orders, ("", ""))
    config = evaluation_config(entry, grid, config)
    missing = None if entry.users is not None else unavailable(config)
    people: Sequence[Person] = []
    if missing is None:
        people = held_out(config, entry.users)[0][: grid.max_users]
        targets = sum(len(person.user.targets) for person in people)
        texts = [text for person in people for t in person.user.targets for text in (t.chosen, t.rejected)]
        response = sum(map(estimate_tokens, texts)) / max(1, len(texts))
        shape = Shape(config, people, len(people), targets, response)
        size = f"{len(people):,} users, {targets:,} target pairs"
    else:
        users = min(config.data.test_users, grid.max_users or config.data.test_users)
        shape = Shape(config, [], users, users * config.data.targets_per_user, ASSUMED_RESPONSE)
        size = (
            f"{users:,} users, {shape.targets:,} target pairs (data.test_users; {missing}); assuming task prompts of "
            f"{ASSUMED_PROMPT} tokens, responses of {ASSUMED_RESPONSE}, and signals of signals.token_budget"
        )
    plan.details += [f"benchmark  {entry.label}: {state}", f"           {size}"]
    return Benchmark(entry.label, config, trained, people, benchmark_of(config, None, entry.users), None), shape


def _plan_cell(cell: Cell, shape: Shape, grid: GridConfig, plan: GridPlan) -> None:
    generator = cell.generator
    items = (
        sum(len(cell.job.expected(name)) for name in cell.methods)
        if shape.people
        else (shape.targets * len(cell.methods))
    )
    work = f"{items:,} items to score" if cell.scored else "no log-probs, judged only"
    plan.details += [
        f"generator  {cell.name}: {cell.models.untrained}; {work}",
        f"           methods: {', '.join(cell.methods)}",
    ]
    template = "auto" if generator is None else generator.template
    if template == "auto":
        local = generator is not None and generator.url is None
        template = "default" if local else template_of(cell.benchmark.config)
    templates = Templates.load(template)
    lengths = {name: _prompt_tokens(name, shape, templates) for name in cell.methods if not METHODS[name].per_user}
    api = generator if generator is not None and generator.url is not None else None
    if api is not None and cell.scored:
        for name in cell.methods:  # chosen and rejected; a request generates at least one token
            _count(plan, api).add(2 * shape.targets, lengths[name] + shape.response, 1, api.prices)
    answers: dict[tuple[str, int], int] = {}
    for judge in (judge for judge in grid.judges if applies(judge, cell)):
        max_tokens = judge.max_tokens or shape.config.evaluation.answer_tokens
        prompts, pairs = shape.asked(judge.prompts), pairs_of(judge, cell.answering)
        for name in {name for pair in pairs for name in pair}:
            answers[name, max_tokens] = max(prompts, answers.get((name, max_tokens), 0))
        plan.details.append(
            f"           judge {judge.name}: {2 * prompts * len(pairs):,} verdicts on {len(pairs)} pairs of methods"
        )
        if judge.url is not None:
            tokens = _judge_tokens(judge, shape) + 2 * max_tokens
            calls = plan.calls.setdefault(f"judge {judge.name}", Calls())
            calls.add(2 * prompts * len(pairs), tokens, _longest(judge, judge.judge_tokens), judge.prices)
    if api is not None:
        for (name, max_tokens), prompts in answers.items():
            _count(plan, api).add(prompts, lengths[name], _longest(api, max_tokens), api.prices)


def _count(plan: GridPlan, generator: GridGenerator) -> Calls:
    return plan.calls.setdefault(f"generator {generator.name}", Calls())


def _longest(model: GridGenerator | GridJudge, max_tokens: int) -> int:
    """Maximum tokens of an answer: the model's extra request fields override the grid."""
    own = [value for name in ("max_tokens", "max_completion_tokens") if isinstance(value := model.extra.get(name), int)]
    return max(own, default=max_tokens)


def _tokens(messages: Messages) -> int:
    return sum(estimate_tokens(str(message["content"])) + PER_MESSAGE for message in messages) + PER_MESSAGE


def _prompt_tokens(name: str, shape: Shape, templates: Templates) -> float:
    """Mean tokens of a task prompt under a method."""
    method, config = METHODS[name], shape.config
    budget, summary = config.signals.token_budget, config.summary.max_tokens
    raw, plain = method.contexts is raw_signals, method.contexts is plain_prompts
    if not shape.people:
        bare = _tokens(templates.generator_messages("x", None)) + ASSUMED_PROMPT
        guide = _tokens(templates.generator_messages("x", "x")) - _tokens(templates.generator_messages("x", None))
        return bare + (budget if raw else 0 if plain else guide + summary)
    lengths = []
    for person in shape.looked_at:
        signals = templates.fit(person.user.signals, budget, estimate_tokens)[0] if raw else []
        for target in person.user.targets:
            if raw:
                lengths.append(_tokens(templates.raw_signals_messages(target.prompt, signals)))
            elif plain:
                lengths.append(_tokens(templates.generator_messages(target.prompt, None)))
            else:
                lengths.append(_tokens(templates.generator_messages(target.prompt, "x")) + summary)
    return sum(lengths) / max(1, len(lengths))


def _judge_tokens(judge: GridJudge, shape: Shape) -> float:
    """Mean tokens of a judge's prompt without the responses."""
    prompt, budget = JudgePrompt(judge.prompt), shape.config.signals.token_budget
    lengths = []
    for person in shape.looked_at:
        persona = persona_for(person, judge.evidence)
        signals, _ = prompt.signals.fit(person.user.signals if persona is None else [], budget, estimate_tokens)
        for target in person.user.targets[:1]:
            lengths.append(estimate_tokens(prompt.text(Question(person, target.prompt, "x", "x"), persona, signals)))
    return sum(lengths) / len(lengths) if lengths else estimate_tokens(prompt.source) + ASSUMED_PROMPT + budget

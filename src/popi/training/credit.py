"""Credit per clause: a summary's text in clauses, what each gains, and which tokens that is the credit of.

Clause j gains d_j = r_j − r_{j−1}, with r_i the reward of the summary's beginning of i clauses: what leaving it out
would cost a writer who stops there. A token before whose first character i clauses have ended is of segment i, and has
that segment's advantage (`popi.training.objective.clause_advantages`): the clause that it is part of and all behind it
count, those that stood before it do not. A separator and a full stop belong to the clause that they end, because what
else could have stood in their place is more of that clause.

Why not what leaving a clause out of the whole summary costs: docs/method.md.
"""

import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from popi.models.local.model import LocalModel
from popi.profiles.clauses import list_items
from popi.profiles.statements.sentences import bullet, sentences
from popi.training.reward import Scores, SummaryReward
from popi.training.rows import InferenceRow

CREDITED_CLAUSES = 16
"""Clauses of a summary that have credit of their own; what is beyond them belongs to the last. It bounds what a model
costs that goes round in circles."""

_SEPARATOR = re.compile(r"\s*\S+")
_SEMICOLON = re.compile(r";(?=\s)")


@dataclass(frozen=True)
class Block:
    """A sentence, an item of a bulleted list, or a list of wishes: characters `lead` to `start` stand in front of it.

    Attributes:
        items: the clauses in it, (start, stop) each; the block itself, or the items of a list of wishes.
    """

    lead: int
    start: int
    stop: int
    items: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Clauses:
    """A summary's text in clauses.

    Attributes:
        over: of each clause, the character from which on it has ended: behind its full stop or its separator.
    """

    text: str
    blocks: tuple[Block, ...]
    over: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "Clauses":
        """The sentences, lines and list items of a text; the items of "wants short answers, any tone and jokes." are
        clauses each. At most `CREDITED_CLAUSES`: what is beyond them belongs to the last.
        """
        blocks: list[Block] = []
        over: list[int] = []
        for start, stop in _sentences(text):
            found = list_items(text[start:stop], least=2)
            items = tuple((start + a, start + b) for a, b in found) if found else ((start, stop),)
            blocks.append(Block(blocks[-1].stop if blocks else 0, start, stop, items))
            for n, (_, end) in enumerate(items):
                if n + 1 < len(items) and (separator := _SEPARATOR.match(text, end)):
                    over.append(separator.end())
                else:  # a sentence is over with its full stop, other text with what follows it
                    over.append(end if end == stop and not text[end - 1].isalnum() else end + 1)
        most = CREDITED_CLAUSES
        return cls(text, tuple(blocks), (*over[: most - 1], over[-1]) if len(over) > most else tuple(over))

    def __len__(self) -> int:
        return len(self.over)

    @property
    def texts(self) -> list[str]:
        """The words of each clause, without what stands between clauses."""
        items = [item for block in self.blocks for item in block.items]
        ends = [*(stop for _, stop in items[: len(self) - 1]), *(stop for _, stop in items[-1:])]
        return [self.text[start:stop] for (start, _), stop in zip(items, ends, strict=False)]

    def up_to(self, n: int) -> str:
        """The text with its first `n` clauses alone."""
        return self.text if n >= len(self) else self.kept(range(n))

    def kept(self, which: Container[int]) -> str:
        """The text with these of its clauses alone; "a, b and c" without c is "a and b"."""
        text, n, parts = self.text, 0, []
        for block in self.blocks:
            items = [item for i, item in enumerate(block.items, n) if i in which]
            n += len(block.items)
            if not items:
                continue
            between = [text[a[1] : b[0]] for a, b in zip(block.items, block.items[1:], strict=False)]
            joints = [*between[: len(items) - 2], *between[-1:]][: len(items) - 1]
            said = "".join(text[a:b] + joint for (a, b), joint in zip(items, [*joints, ""], strict=True))
            ends = text[block.start : block.items[0][0]], text[block.items[-1][1] : block.stop]
            parts.append(text[block.lead : block.start] + ends[0] + said + ends[1])
        joined = "".join(parts).strip()
        return f"{joined[:-1]}." if joined.endswith(";") else joined

    def segments(self, local: LocalModel, ids: Sequence[int]) -> list[int]:
        """For each of the tokens that the text was decoded from: how many clauses had ended before it, 0 to K."""
        firsts = local.first_tokens(ids, self.over)
        return [sum(first <= token for first in firsts) for token in range(len(ids))]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where the parts of a text stand that `popi.profiles.statements.lines` finds in it; cut at semicolons, too."""
    begin = 0
    for line in text.splitlines(keepends=True):
        first = bullet(line)
        parts = sentences(line) if first is None else [line[first:]]
        places = (begin + i for i, char in enumerate(line) if i >= (first or 0) and not char.isspace())
        for part in parts:  # white space aside they are the line's characters, in order
            own = [next(places) for char in part if not char.isspace()]
            if not own:
                continue
            cuts = [own[0], *(own[0] + cut.end() for cut in _SEMICOLON.finditer(text[own[0] : own[-1]])), own[-1] + 1]
            for start, stop in zip(cuts, cuts[1:], strict=False):
                yield start + len(text[start:stop]) - len(text[start:stop].lstrip()), stop
        begin += len(line)


@dataclass(frozen=True)
class Stops:
    """What the summaries of some rows score where they stop after each of their clauses.

    Attributes:
        clauses: n summaries.
        scores: of the distinct (user, text) among their beginnings.
        places: of each summary, where its beginnings with 0 … K−1 clauses stand in `scores`.
    """

    clauses: list[Clauses]
    scores: Scores
    places: list[list[int]]

    @classmethod
    def of(
        cls, reward: SummaryReward, texts: Sequence[str], rows: Sequence[InferenceRow], count: Callable[[str], int]
    ) -> "Stops":
        """Score them as summaries are scored, the length penalty included; `count` says how long a text is."""
        clauses = [Clauses.of(text) for text in texts]
        index: dict[tuple[int, str], int] = {}
        users = {id(row): row for row in rows}
        places = [
            [index.setdefault((id(row), one.up_to(k)), len(index)) for k in range(max(len(one), 1))]
            for one, row in zip(clauses, rows, strict=True)
        ]
        heads = [text for _, text in index]
        scores = reward.score(heads, [users[row] for row, _ in index], [count(text) for text in heads])
        return cls(clauses, scores, places)

    def rewards(self, whole: Tensor) -> list[Tensor]:
        """Of each summary, (K+1,): its reward after 0 … K clauses. `whole`: (n,) rewards of the summaries."""
        stopped = self.scores.rewards
        return [torch.cat([stopped[at], own[None]]) for at, own in zip(self.places, whole, strict=True)]

    def gains(self, whole: Tensor) -> list[list[tuple[str, float]]]:
        """The clauses of each summary, and what each gains."""
        return [
            list(zip(own.texts, values.diff().tolist(), strict=False))
            for values, own in zip(self.rewards(whole), self.clauses, strict=True)
        ]


def token_advantages(by_segment: Tensor, segments: Sequence[Sequence[int]]) -> Tensor:
    """(n, S) advantages of segments -> (n, T) of tokens, by the segment of each; 0 behind a summary's end."""
    spread = by_segment.new_zeros(len(segments), max(map(len, segments)))
    for n, own in enumerate(segments):
        spread[n, : len(own)] = by_segment[n, torch.tensor(own, dtype=torch.long, device=by_segment.device)]
    return spread

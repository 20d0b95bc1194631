"""Credit per clause: splits a summary into clauses, computes each clause's gain, and assigns tokens to segments.

Clause j gains d_j = r_j − r_{j−1}, where r_i is the reward of the summary's first i clauses: what omitting it would
cost a writer who stops there. A token belongs to segment i if i clauses have ended before its first character, and gets
that segment's advantage (`popi.training.objective.clause_advantages`): its own clause and all later ones count, earlier
ones do not. A separator or full stop belongs to the clause that it ends, because the alternative in its place would be
more of that clause.

docs/method.md explains why the gain is not the cost of omitting a clause from the whole summary.
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
"""Maximum clauses per summary with separate credit; the rest belongs to the last. It bounds the cost of a model that
repeats itself."""

_SEPARATOR = re.compile(r"\s*\S+")
_SEMICOLON = re.compile(r";(?=\s)")


@dataclass(frozen=True)
class Block:
    """A sentence, an item of a bulleted list, or a list of wishes, preceded by the characters from `lead` to `start`.

    Attributes:
        items: (start, stop) of each clause in it: the block itself, or the items of a list of wishes.
    """

    lead: int
    start: int
    stop: int
    items: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Clauses:
    """A summary's text in clauses.

    Attributes:
        ends: for each clause, the character from which on it has ended, after its full stop or separator.
    """

    text: str
    blocks: tuple[Block, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "Clauses":
        """Split a text into sentences, lines and list items; each item of "wants short answers, any tone and jokes." is
        a clause. Beyond `CREDITED_CLAUSES`, the rest belongs to the last one.
        """
        blocks: list[Block] = []
        ends: list[int] = []
        for start, stop in _sentences(text):
            wishes = list_items(text[start:stop], least=2)
            items = tuple((start + a, start + b) for a, b in wishes) if wishes else ((start, stop),)
            blocks.append(Block(blocks[-1].stop if blocks else 0, start, stop, items))
            for n, (_, end) in enumerate(items):
                if n + 1 < len(items) and (separator := _SEPARATOR.match(text, end)):
                    ends.append(separator.end())
                else:  # a sentence ends with its full stop, other text with the character after it
                    ends.append(end if end == stop and not text[end - 1].isalnum() else end + 1)
        most = CREDITED_CLAUSES
        return cls(text, tuple(blocks), (*ends[: most - 1], ends[-1]) if len(ends) > most else tuple(ends))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def texts(self) -> list[str]:
        """The text of each clause, without separators."""
        items = [item for block in self.blocks for item in block.items]
        stops = [*(stop for _, stop in items[: len(self) - 1]), *(stop for _, stop in items[-1:])]
        return [self.text[start:stop] for (start, _), stop in zip(items, stops, strict=False)]

    def up_to(self, n: int) -> str:
        """The text's first `n` clauses."""
        return self.text if n >= len(self) else self.only(range(n))

    def only(self, which: Container[int]) -> str:
        """The text with only these clauses; "a, b and c" without c is "a and b"."""
        text, n, parts = self.text, 0, []
        for block in self.blocks:
            items = [item for i, item in enumerate(block.items, n) if i in which]
            n += len(block.items)
            if not items:
                continue
            between = [text[a[1] : b[0]] for a, b in zip(block.items, block.items[1:], strict=False)]
            joints = [*between[: len(items) - 2], *between[-1:]][: len(items) - 1]
            inner = "".join(text[a:b] + joint for (a, b), joint in zip(items, [*joints, ""], strict=True))
            opening, closing = text[block.start : block.items[0][0]], text[block.items[-1][1] : block.stop]
            parts.append(text[block.lead : block.start] + opening + inner + closing)
        joined = "".join(parts).strip()
        return f"{joined[:-1]}." if joined.endswith(";") else joined

    def segments(self, local: LocalModel, ids: Sequence[int]) -> list[int]:
        """For each token that the text was decoded from: the number of clauses that ended before it, 0 to K."""
        firsts = local.first_tokens(ids, self.ends)
        return [sum(first <= token for first in firsts) for token in range(len(ids))]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts that `popi.profiles.statements.lines` finds in a text, also cut at semicolons."""
    begin = 0
    for line in text.splitlines(keepends=True):
        first = bullet(line)
        parts = sentences(line) if first is None else [line[first:]]
        places = (begin + i for i, char in enumerate(line) if i >= (first or 0) and not char.isspace())
        for part in parts:  # apart from whitespace they are the line's characters, in order
            own = [next(places) for char in part if not char.isspace()]
            if not own:
                continue
            cuts = [own[0], *(own[0] + cut.end() for cut in _SEMICOLON.finditer(text[own[0] : own[-1]])), own[-1] + 1]
            for start, stop in zip(cuts, cuts[1:], strict=False):
                yield start + len(text[start:stop]) - len(text[start:stop].lstrip()), stop
        begin += len(line)


@dataclass(frozen=True)
class Stops:
    """The scores of summaries truncated after each of their clauses.

    Attributes:
        clauses: n summaries.
        scores: scores of the distinct (user, truncated text).
        places: for each summary, the indices in `scores` of its truncations to 0 … K−1 clauses.
    """

    clauses: list[Clauses]
    scores: Scores
    places: list[list[int]]

    @classmethod
    def of(
        cls, reward: SummaryReward, texts: Sequence[str], rows: Sequence[InferenceRow], count: Callable[[str], int]
    ) -> "Stops":
        """Score truncations like summaries, including the length penalty; `count` returns a text's tokens."""
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
        """For each summary, (K+1,): its reward after 0 … K clauses. `whole`: (n,) rewards of the whole summaries."""
        stopped = self.scores.rewards
        return [torch.cat([stopped[at], own[None]]) for at, own in zip(self.places, whole, strict=True)]

    def gains(self, whole: Tensor) -> list[list[tuple[str, float]]]:
        """Each summary's clauses with their gains."""
        return [
            list(zip(own.texts, values.diff().tolist(), strict=False))
            for values, own in zip(self.rewards(whole), self.clauses, strict=True)
        ]


def token_advantages(by_segment: Tensor, segments: Sequence[Sequence[int]]) -> Tensor:
    """(n, S) advantages of segments -> (n, T) of tokens, by each token's segment; 0 after the end of a summary."""
    spread = by_segment.new_zeros(len(segments), max(map(len, segments)))
    for n, own in enumerate(segments):
        spread[n, : len(own)] = by_segment[n, torch.tensor(own, dtype=torch.long, device=by_segment.device)]
    return spread

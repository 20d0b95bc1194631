"""The preference summary: the only thing that crosses from the inference model to the generator."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Summary:
    """A preference summary and where it came from.

    Attributes:
        text: what the inference model wrote; plain language, fit to be read and edited.
        tokens: its length under the inference model's tokenizer (no special tokens); for a model behind an
            API as its server counted, else an estimate.
        signals_used: how many of the user's signals the inference model read.
        signals_dropped: ids (or positions, as ``#3``) of whole signals left out to fit the token budget.
        model: the inference model that wrote it (a name or a path).
        rests_on: how many signals it rests on: those read, and of a renewal those behind the old summary too.
        abstained: it says that no preference is known: there were no signals, or the inference model saw no preference
            in them. The generator then answers the plain prompt (docs/evidence.md).
        left_out: kinds of things (`popi.profiles.screening.Kind`) for the sake of which part of what the model wrote,
            or all of it, is not in `text`.
        statements: the statements that `text` joins, where the model was asked for statements.
    """

    text: str
    tokens: int
    signals_used: int = 0
    signals_dropped: tuple[str, ...] = field(default=())
    model: str = ""
    abstained: bool = False
    left_out: tuple[str, ...] = field(default=())
    rests_on: int = 0
    statements: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.text

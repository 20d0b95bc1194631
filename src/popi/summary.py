"""The preference summary: the only thing that the inference model passes to the generator."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Summary:
    """A preference summary and where it came from.

    Attributes:
        text: what the inference model wrote, in plain language that people can read and edit.
        tokens: its length under the inference model's tokenizer, without special tokens; for a model behind an API,
            the server's count or else an estimate.
        signals_used: number of the user's signals that the inference model read.
        signals_dropped: ids (or positions, such as ``#3``) of whole signals dropped to fit the token budget.
        model: the inference model that wrote it (a name or a path).
        signals_total: number of signals that it is based on: those read and, for a renewal, those of the old summary.
        abstained: whether it says that no preference is known, because there were no signals or the inference model
            saw no preference in them. The generator then answers the plain prompt (docs/evidence.md).
        removed_content: kinds of content (`popi.profiles.screening.Kind`) that were removed from what the model wrote.
        statements: the statements joined in `text`, if the model was asked for statements.
    """

    text: str
    tokens: int
    signals_used: int = 0
    signals_dropped: tuple[str, ...] = field(default=())
    model: str = ""
    abstained: bool = False
    removed_content: tuple[str, ...] = field(default=())
    signals_total: int = 0
    statements: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return self.text

"""TRL's preference rows with a `user_id`, and the windows of signals and targets cut from them."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from popi.errors import DataError
from popi.signals.types import PairSignal, Prompt, TargetPair, Text, Time, ToolCallMessage, Turn, User, wrong_roles


class PreferenceRow(BaseModel):
    """A row of a TRL preference dataset with an additional user id.

    Columns as in TRL: text or chat messages. With chat messages the prompt may be implicit: `chosen` and `rejected` are
    then complete conversations that differ in the last message. Other columns are ignored.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)
    user_id: Text
    """The user whose preference it is."""
    prompt: Prompt | None = None
    """The task prompt; may be missing if `chosen` and `rejected` are complete conversations."""
    chosen: Text | list[Turn]
    """The preferred response: text, one assistant message, or a complete conversation."""
    rejected: Text | list[Turn]
    """The other response, in the same form as `chosen`."""
    id: str | None = None
    time: Time | None = None

    def pair(self) -> TargetPair:
        """The row as prompt, chosen text, rejected text.

        Raises:
            DataError: if the row's columns do not form a pair; the message names the column.
        """
        pair = self._pair()
        if wrong := wrong_roles(pair.prompt):
            raise DataError(f"prompt: {wrong}")
        return pair

    def _pair(self) -> TargetPair:
        prompt, chosen, rejected = self.prompt, self.chosen, self.rejected
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise DataError("chosen, rejected: must both be text, or both chat messages")
        if isinstance(chosen, str) or isinstance(rejected, str):
            if prompt is None:
                raise DataError("prompt: missing; required if chosen and rejected are text")
            return TargetPair(prompt=prompt, chosen=str(chosen), rejected=str(rejected))
        if prompt is None:
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            if shared == 0:
                raise DataError("prompt: missing, and chosen and rejected do not begin with the same messages")
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        for name, messages in (("chosen", chosen), ("rejected", rejected)):
            if len(messages) != 1 or messages[0].role != "assistant" or isinstance(messages[0], ToolCallMessage):
                roles = ", ".join(message.role for message in messages) or "nothing"
                raise DataError(f"{name}: must be one assistant message after the prompt; got {roles}")
        return TargetPair(prompt=prompt, chosen=chosen[0].content, rejected=rejected[0].content)


def cut_windows(rows: Iterable[PreferenceRow], signals: int, targets: int) -> tuple[list[User], int]:
    """Cut each user's rows, in order, into non-overlapping windows.

    In a window, `signals` rows become pair signals and the next `targets` rows become targets. Each window is a `User`
    with the original `user_id`, which therefore repeats: intervals are clustered by it, and splits are compared by it.

    Returns:
        The windows, with users in order of first appearance; and the number of rows left over.
    """
    by_user: dict[str, list[PreferenceRow]] = {}
    for row in rows:
        by_user.setdefault(row.user_id, []).append(row)
    windows, left = [], 0
    size = signals + targets
    for user_id, user_rows in by_user.items():
        for start in range(0, len(user_rows) - size + 1, size):
            window = user_rows[start : start + size]
            windows.append(
                User(
                    user_id=user_id,
                    signals=[_signal(row) for row in window[:signals]],
                    targets=[row.pair() for row in window[signals:]],
                )
            )
        left += len(user_rows) % size
    return windows, left


def _signal(row: PreferenceRow) -> PairSignal:
    pair = row.pair()
    return PairSignal(id=row.id, time=row.time, prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected)

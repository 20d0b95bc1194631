"""Files of alpaca_eval (github.com/tatsu-lab/alpaca_eval): its model outputs and its annotations.

Both are JSON arrays of objects. **Model outputs**: `instruction`, `output`, `generator`. **Annotations**:
`instruction`, `output_1`, `generator_1`, `output_2`, `generator_2`, `annotator`, `preference`. In annotations the
reference's output is always `output_1` and the evaluated model's `output_2`; `preference` is a number from 1 (output_1
is better) to 2 (output_2 is better), 1.5 is a tie, null a missing annotation. In old files 0 is a tie.

popi adds `user_id` to both, to distinguish users with the same instruction; alpaca_eval ignores unknown fields. Its
own annotators know nothing about users and match outputs by instruction alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi.errors import DataError
from popi.evaluation.judge.comparisons import Comparison


@dataclass(frozen=True)
class ModelOutput:
    """One row of model outputs."""

    instruction: str
    output: str
    generator: str = ""
    user_id: str | None = None


@dataclass(frozen=True)
class Annotation:
    """One row of annotations.

    Attributes:
        preference: 1 (output_1 is better) … 2 (output_2 is better); None: missing.
    """

    instruction: str
    output_1: str
    output_2: str
    preference: float | None
    generator_1: str = ""
    generator_2: str = ""
    user_id: str | None = None

    @property
    def outcome(self) -> float | None:
        """The result for output_2, the evaluated model's: from 0 (loss) to 1 (win), ½ for a tie."""
        return None if self.preference is None else self.preference - 1


def model_outputs(comparisons: Sequence[Comparison], generator: str, *, of_reference: bool) -> list[dict[str, Any]]:
    """One method's responses as model outputs; skips pairs without a response."""
    rows = [(c, c.theirs if of_reference else c.ours) for c in comparisons]
    return [
        {"instruction": c.prompt, "output": text, "generator": generator, "user_id": c.user_id}
        for c, text in rows
        if text is not None
    ]


def annotations(comparisons: Sequence[Comparison], method: str, reference: str, judge: str) -> list[dict[str, Any]]:
    """Comparisons as annotations; the verdicts in both orders become one preference, 1 + the method's outcome."""
    return [
        {
            "instruction": c.prompt,
            "output_1": c.theirs,
            "generator_1": reference,
            "output_2": c.ours,
            "generator_2": method,
            "annotator": judge,
            "preference": None if c.outcome is None else 1 + c.outcome,
            "user_id": c.user_id,
        }
        for c in comparisons
        if c.ours is not None and c.theirs is not None
    ]


def read_model_outputs(path: str | Path) -> list[ModelOutput]:
    """Read model outputs.

    Raises:
        DataError: the file can't be read, is not such an array, has a field of the wrong type, or a duplicate row.
    """
    rows, seen = [], set()
    for number, row in enumerate(_array(path)):
        where = f"{path}: row {number}"
        output = ModelOutput(
            _text(row, "instruction", where),
            _text(row, "output", where),
            _text(row, "generator", where, ""),
            _text(row, "user_id", where, None),
        )
        if (output.user_id, output.instruction) in seen:
            raise DataError(f"{where}: a second output for instruction {output.instruction[:80]!r}; keep one")
        seen.add((output.user_id, output.instruction))
        rows.append(output)
    return rows


def read_annotations(path: str | Path) -> list[Annotation]:
    """Read annotations.

    Raises:
        DataError: the file can't be read, is not such an array, or has a field of the wrong type or a preference
            outside 1 to 2.
    """
    rows = []
    for number, row in enumerate(_array(path)):
        where = f"{path}: row {number}"
        rows.append(
            Annotation(
                _text(row, "instruction", where),
                _text(row, "output_1", where),
                _text(row, "output_2", where),
                _preference(row, where),
                _text(row, "generator_1", where, ""),
                _text(row, "generator_2", where, ""),
                _text(row, "user_id", where, None),
            )
        )
    return rows


def _array(path: str | Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, list) or not content or not all(isinstance(row, dict) for row in content):
        raise DataError(f"{path}: must be a JSON array of objects, as alpaca_eval writes it; got {str(content)[:80]}")
    return content


def _text(row: dict[str, Any], field: str, where: str, default: Any = ...) -> Any:
    value = row.get(field)
    if isinstance(value, str) or (value is None and default is not ...):
        return default if value is None else value
    raise DataError(f"{where}: {field} must be text; got {value!r}")


def _preference(row: dict[str, Any], where: str) -> float | None:
    value = row.get("preference")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and (value == 0 or 1 <= value <= 2):
        return 1.5 if value == 0 else float(value)
    raise DataError(f"{where}: preference must be between 1 and 2, or null if missing; got {value!r}")

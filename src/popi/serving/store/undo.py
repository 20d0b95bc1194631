"""Where "Undo" and "Redo" lead. Each makes a new version, and notes whose content it has (`restores`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from popi.serving.store.tables import summaries


@dataclass(frozen=True)
class Steps:
    """The versions whose content is next; None: there is nothing to undo, or to do again."""

    undo: int | None = None
    redo: int | None = None


def steps(connection: Connection, tenant: str, user_id: str) -> Steps:
    """Where a user's current version leads."""
    mine = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    query = select(summaries.c.version, summaries.c.restores).where(*mine).order_by(summaries.c.version.desc())
    return steps_of([(row.version, row.restores) for row in connection.execute(query)])


def steps_of(rows: Sequence[tuple[int, int | None]]) -> Steps:
    """The same from each version and whose content it has, newest first.

    What can be done again is what was undone since the last change: a new one, a person's or the model's, ends that.
    """
    if not rows:
        return Steps()
    numbers = [version for version, _ in rows]
    # Of what is no longer kept, the version that restored it stands for it.
    content = {version: restores if restores in numbers else version for version, restores in rows}

    def before(version: int) -> int | None:
        return next((content[other] for other in numbers if other < version), None)

    here = content[numbers[0]]
    step, redo = next((version for version in numbers if content[version] == version), None), None
    while step is not None and step != here:
        step, redo = before(step), step
    return Steps(before(here), redo if step is not None else None)

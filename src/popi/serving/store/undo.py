"""What "Undo" and "Redo" restore. Each creates a new version that records whose content it has (`restores`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from popi.serving.store.tables import summaries


@dataclass(frozen=True)
class Steps:
    """The versions to restore; `None` if there is nothing to undo or redo."""

    undo: int | None = None
    redo: int | None = None


def steps(connection: Connection, tenant: str, user_id: str) -> Steps:
    """What can be undone or redone from a user's current version."""
    is_user = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    query = select(summaries.c.version, summaries.c.restores).where(*is_user).order_by(summaries.c.version.desc())
    return steps_of([(row.version, row.restores) for row in connection.execute(query)])


def steps_of(rows: Sequence[tuple[int, int | None]]) -> Steps:
    """As `steps`, from (version, `restores`) pairs, newest first.

    Only what was undone since the last change can be redone: a new version by a person or the model ends that.
    """
    if not rows:
        return Steps()
    numbers = [version for version, _ in rows]
    # If the original is no longer stored, the version that restored it takes its place.
    content = {version: restores if restores in numbers else version for version, restores in rows}

    def before(version: int) -> int | None:
        return next((content[other] for other in numbers if other < version), None)

    here = content[numbers[0]]
    step, redo = next((version for version in numbers if content[version] == version), None), None
    while step is not None and step != here:
        step, redo = before(step), step
    return Steps(before(here), redo if step is not None else None)

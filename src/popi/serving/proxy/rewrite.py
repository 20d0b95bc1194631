"""A request's body, read once and written once: ids out, summary in, everything else the same bytes."""

from collections.abc import Sequence
from typing import NamedTuple

from popi.serving.proxy.block import Blocks
from popi.serving.proxy.body import unpacked
from popi.serving.proxy.ids import FoundId, Pseudonyms, find_ids, id_edits
from popi.serving.proxy.inject import Api, summary_edit
from popi.serving.proxy.members import Member, Unreadable, apply, body_text, read_body
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings


class Rewriting(NamedTuple):
    """A body that was read.

    Attributes:
        raw: as it came.
        api: of its request.
        body: without its content encoding.
        text: `body` as `body_text` gives it.
        start: where its object begins.
        members: of that object; None where the body could not be read, and will go on as it came.
        found: user ids in it.
    """

    raw: bytes
    api: Api
    body: bytes
    text: str
    start: int
    members: Sequence[Member] | None
    found: Sequence[FoundId]


class Rewriter:
    """Reads and writes bodies as the settings say."""

    def __init__(self, settings: ProxySettings, pseudonyms: Pseudonyms) -> None:
        self._mode, self._most, self._pseudonyms = settings.ids_upstream, settings.max_body_bytes, pseudonyms
        self._blocks = Blocks(settings.block)

    def forget(self) -> None:
        """Keep nothing of users: no summary that was put in, no id."""
        self._blocks.forget()
        self._pseudonyms.forget()

    def read(self, raw: bytes, encoding: str, api: Api) -> Rewriting:
        """Find what matters in a body.

        Raises:
            Refusal: it is compressed, written or nested in a way that can't be read here, or too long.
        """
        body = unpacked(raw, encoding, self._most)
        if body is not None:
            text = body_text(body)
            try:
                start, members = read_body(text)
                return Rewriting(raw, api, body, text, start, members, find_ids(body, text, members))
            except Unreadable:
                # Upstreams read what is no JSON here but is in UTF-16 or UTF-32: ids in it would pass unseen.
                if b"\0" in body[:4]:
                    raise Refusal(400, "body_encoding", "the JSON of this request must be in UTF-8") from None
        return Rewriting(raw, api, b"", "", 0, None, ())

    def write(self, read: Rewriting, tenant: str, summary: str | None) -> tuple[bytes, bool]:
        """The body that goes upstream, and whether the summary is in it. Unchanged, it is the one that came.

        Raises:
            Refusal: it is nested too deep.
        """
        if read.members is None:
            return read.raw, False
        body, text, start, members = read.body, read.text, read.start, read.members
        edits = id_edits(read.found, self._pseudonyms, tenant, self._mode)
        if edits and self._mode == "stripped" and summary:
            # Whether a comma is due before the next member depends on what is left.
            body, edits = apply(body, edits), []
            text = body_text(body)
            start, members = read_body(text)
        put_in = False
        if summary:
            edit = summary_edit(read.api, text, start, list(members), self._blocks.of(summary))
            if edit is not None:
                edits.append(edit)
                put_in = True
        if edits:
            body = apply(body, edits)
        return (body if edits or body is not read.body else read.raw), put_in

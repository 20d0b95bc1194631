"""Headers in both directions: which are ours, which end at this hop, which are passed on."""

from collections.abc import Iterable, Sequence

from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings

Raw = tuple[bytes, bytes]

HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that are about one connection (RFC 9110, 7.6.1)."""
_NOT_ON = HOP | {b"host", b"content-length", b"expect"}
_READ = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-popi-key",
    b"x-popi-personalize",
    b"x-popi-tenant",
    b"content-length",
    b"content-encoding",
)
# Hold a user id whether or not it counts here.
_NAMING = (b"x-litellm-end-user-id", b"x-litellm-user_api_key_end_user_id", b"x-openwebui-user-id")
# Open WebUI sends names and addresses beside the id, LiteLLM's proxy what it knows of its own key.
_OURS = (b"x-popi-", b"x-openwebui-user-", b"x-litellm-user_api_key_")
_OUR_ANSWERS = (b"x-popi-", b"access-control-")


class RequestHeaders:
    """The headers of one request, sorted.

    Attributes:
        passed: what goes upstream as it is; without anything of ours, keys and user ids.
        key: the popi key; None where there is none.
        own_upstream_key: the client brings its own key for the upstream, among `passed`.
        jwt: the token that names the user; None where there is none.
        named: user ids by header.
        ids: those of them that count, in their order.
        tenant: whose users an admin speaks for; None: their own tenant's.
        off: the client asks not to be personalised.
        length: what `content-length` says.
        encoding: what `content-encoding` says, in lower case; not among `passed`.
    """

    __slots__ = ("encoding", "ids", "jwt", "key", "length", "named", "off", "own_upstream_key", "passed", "tenant")

    def __init__(self, raw: Iterable[Raw], rules: "HeaderRules") -> None:
        passed: list[Raw] = []
        seen: dict[bytes, bytes] = {}
        for name, value in raw:
            if name == b"connection":
                seen[name] = seen[name] + b"," + value if name in seen else value
            elif name in rules.read:
                if name in seen and (seen[name] != value or name == b"content-encoding"):  # each is an encoding more
                    raise Refusal(400, "ambiguous_header", f"the header {name.decode()} is there twice; send it once")
                seen[name] = value
            elif b"_" in name and rules.reads(right := name.replace(b"_", b"-")):
                # Servers behind CGI and WSGI take the one for the other.
                raise Refusal(400, "header_name", f"spell the header {right.decode()}, without underscores")
            elif name not in _NOT_ON and not name.startswith(_OURS):
                passed.append((name, value))
        if (connection := seen.get(b"connection")) is not None and (ending := _ending_here(connection)):
            passed = [header for header in passed if header[0] not in ending]
        length = seen.get(b"content-length", b"")
        self.passed, self.encoding = passed, _text(seen.get(b"content-encoding", b"")).lower()
        self.length = int(length) if length.isdigit() else None
        self.off = seen.get(b"x-popi-personalize", b"").strip().lower() == b"off"
        self.tenant = _text(seen.get(b"x-popi-tenant", b"")) or None
        self.named = {name: user_id for name in rules.naming if name in seen and (user_id := _text(seen[name]))}
        self.ids = {name.decode(): self.named[name] for name in rules.counting if name in self.named}
        self._keys(seen, rules)

    def _keys(self, seen: dict[bytes, bytes], rules: "HeaderRules") -> None:
        """Where there is `x-popi-key`, that is ours, and the others are the upstream's."""
        theirs = [(name, seen[name]) for name in (b"authorization", b"x-api-key", b"api-key") if name in seen]
        token = seen.get(rules.jwt) if rules.jwt else None
        if b"x-popi-key" in seen:
            self.key: str | None = _text(seen[b"x-popi-key"]) or None
            theirs = [header for header in theirs if header[0] != rules.jwt]
            self.own_upstream_key = bool(theirs)
            self.passed += theirs
        else:
            plain = seen.get(b"x-api-key") or seen.get(b"api-key") or b""
            self.key = _bearer(seen.get(b"authorization")) or _text(plain) or None
            self.own_upstream_key = False
            if rules.jwt == b"authorization":
                token = None
        self.jwt = None if token is None else _bearer(token) or _text(token)


class HeaderRules:
    """What the settings say about headers, worked out once.

    Attributes:
        read: names of headers that are looked at, and not passed on as they are.
        naming: those that hold a user id.
        counting: of those, the ones that say who the user is, in their order.
        hashed: of those, the ones that go upstream, with the hash of the id.
        jwt: the header with the token.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.counting = tuple(name.encode() for name in settings.identity_headers)
        self.naming = tuple(dict.fromkeys((*self.counting, *_NAMING)))
        self.hashed = frozenset(
            name
            for name in self.naming
            if settings.ids_upstream == "hashed" and not name.startswith((b"x-popi-", b"x-litellm-user_api_key_"))
        )
        self.jwt = settings.jwt.header.encode() if settings.jwt is not None else None
        self.read = frozenset((*_READ, *self.naming, *((self.jwt,) if self.jwt else ())))

    def reads(self, name: bytes) -> bool:
        """Whether a header means something here, or ends here."""
        return name in self.read or name in _NOT_ON or name.startswith(_OURS)


def answer_headers(raw: Sequence[Raw]) -> list[Raw]:
    """Headers of the upstream's answer for the client, but for those that are the gateway's own to set: its `x-popi-…`,
    and which pages may read its answers."""
    kept = []
    named: set[bytes] = set()
    for name, value in raw:
        name = name.lower()
        if name == b"connection":
            named |= _ending_here(value)
        elif name not in HOP and not name.startswith(_OUR_ANSWERS):
            kept.append((name, value))
    return [header for header in kept if header[0] not in named] if named else kept


def _ending_here(connection: bytes) -> set[bytes]:
    return {part.strip().lower() for part in connection.split(b",")} - {b"close", b"keep-alive", b""}


def _text(value: bytes) -> str:
    try:
        return value.decode().strip()
    except UnicodeDecodeError:
        return value.decode("latin-1").strip()


def _bearer(value: bytes | None) -> str | None:
    if value is None or value[:7].lower() != b"bearer ":
        return None
    return _text(value[7:]) or None

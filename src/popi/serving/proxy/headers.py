"""Headers in both directions: which are ours, which are hop-by-hop, which are forwarded."""

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
"""Hop-by-hop headers (RFC 9110, 7.6.1)."""
_NOT_FORWARDED = HOP | {b"host", b"content-length", b"expect"}
_READ_HERE = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-popi-key",
    b"x-popi-personalize",
    b"x-popi-tenant",
    b"content-length",
    b"content-encoding",
)
# Hold a user id, whether or not the settings use it.
_USER_HEADERS = (b"x-litellm-end-user-id", b"x-litellm-user_api_key_end_user_id", b"x-openwebui-user-id")
# Open WebUI sends names and e-mail addresses along with the id; LiteLLM's proxy, details of its own key.
_OUR_PREFIXES = (b"x-popi-", b"x-openwebui-user-", b"x-litellm-user_api_key_")
_OUR_ANSWER_PREFIXES = (b"x-popi-", b"access-control-")


class RequestHeaders:
    """The headers of one request, sorted by purpose.

    Attributes:
        passed: forwarded unchanged; no headers of ours, keys or user ids.
        key: the popi key, if any.
        own_upstream_key: whether `passed` holds the client's own key for the upstream.
        jwt: the token that names the user, if any.
        named: all user ids, by header.
        ids: the user ids that the settings accept, in order of precedence.
        tenant: the tenant that an admin key acts for; None for the key's own.
        off: whether the client opted out of personalisation.
        length: the value of `content-length`, if valid.
        encoding: the value of `content-encoding`, in lower case; not in `passed`.
    """

    __slots__ = ("encoding", "ids", "jwt", "key", "length", "named", "off", "own_upstream_key", "passed", "tenant")

    def __init__(self, raw: Iterable[Raw], rules: "HeaderRules") -> None:
        passed: list[Raw] = []
        seen: dict[bytes, bytes] = {}
        for name, value in raw:
            if name == b"connection":
                seen[name] = seen[name] + b"," + value if name in seen else value
            elif name in rules.read:
                if name in seen and (
                    seen[name] != value or name == b"content-encoding"
                ):  # a second one means another layer of encoding
                    raise Refusal(400, "ambiguous_header", f"the header {name.decode()} was sent twice; send it once")
                seen[name] = value
            elif b"_" in name and rules.reads(dashed := name.replace(b"_", b"-")):
                # CGI and WSGI servers don't distinguish the two spellings.
                raise Refusal(400, "header_name", f"spell the header {dashed.decode()}, without underscores")
            elif name not in _NOT_FORWARDED and not name.startswith(_OUR_PREFIXES):
                passed.append((name, value))
        if (connection := seen.get(b"connection")) is not None and (hop_by_hop := _listed_in(connection)):
            passed = [header for header in passed if header[0] not in hop_by_hop]
        length = seen.get(b"content-length", b"")
        self.passed, self.encoding = passed, _text(seen.get(b"content-encoding", b"")).lower()
        self.length = int(length) if length.isdigit() else None
        self.off = seen.get(b"x-popi-personalize", b"").strip().lower() == b"off"
        self.tenant = _text(seen.get(b"x-popi-tenant", b"")) or None
        self.named = {name: user_id for name in rules.user_headers if name in seen and (user_id := _text(seen[name]))}
        self.ids = {name.decode(): self.named[name] for name in rules.accepted if name in self.named}
        self._keys(seen, rules)

    def _keys(self, seen: dict[bytes, bytes], rules: "HeaderRules") -> None:
        """If there is an `x-popi-key`, that is the popi key and the other keys are for the upstream."""
        upstream_keys = [(name, seen[name]) for name in (b"authorization", b"x-api-key", b"api-key") if name in seen]
        token = seen.get(rules.jwt) if rules.jwt else None
        if b"x-popi-key" in seen:
            self.key: str | None = _text(seen[b"x-popi-key"]) or None
            upstream_keys = [header for header in upstream_keys if header[0] != rules.jwt]
            self.own_upstream_key = bool(upstream_keys)
            self.passed += upstream_keys
        else:
            api_key = seen.get(b"x-api-key") or seen.get(b"api-key") or b""
            self.key = _bearer(seen.get(b"authorization")) or _text(api_key) or None
            self.own_upstream_key = False
            if rules.jwt == b"authorization":
                token = None
        self.jwt = None if token is None else _bearer(token) or _text(token)


class HeaderRules:
    """The settings' rules for headers, computed once.

    Attributes:
        read: names of headers that are read and not forwarded unchanged.
        user_headers: those that hold a user id.
        accepted: those that may name the end user, in order of precedence.
        hashed: those that are forwarded with the id's hash in place of the id.
        jwt: the header that holds the token.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.accepted = tuple(name.encode() for name in settings.identity_headers)
        self.user_headers = tuple(dict.fromkeys((*self.accepted, *_USER_HEADERS)))
        self.hashed = frozenset(
            name
            for name in self.user_headers
            if settings.ids_upstream == "hashed" and not name.startswith((b"x-popi-", b"x-litellm-user_api_key_"))
        )
        self.jwt = settings.jwt.header.encode() if settings.jwt is not None else None
        self.read = frozenset((*_READ_HERE, *self.user_headers, *((self.jwt,) if self.jwt else ())))

    def reads(self, name: bytes) -> bool:
        """Whether a header is read or dropped here, not forwarded unchanged."""
        return name in self.read or name in _NOT_FORWARDED or name.startswith(_OUR_PREFIXES)


def answer_headers(raw: Sequence[Raw]) -> list[Raw]:
    """The upstream's response headers to forward: all but hop-by-hop headers and those that the gateway itself sets
    (`x-popi-…` and CORS)."""
    forwarded = []
    hop_by_hop: set[bytes] = set()
    for name, value in raw:
        name = name.lower()
        if name == b"connection":
            hop_by_hop |= _listed_in(value)
        elif name not in HOP and not name.startswith(_OUR_ANSWER_PREFIXES):
            forwarded.append((name, value))
    return [header for header in forwarded if header[0] not in hop_by_hop] if hop_by_hop else forwarded


def _listed_in(connection: bytes) -> set[bytes]:
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

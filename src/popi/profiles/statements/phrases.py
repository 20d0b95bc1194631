"""Words and phrases: normalising wordings, and recognising the parts of an answer."""

import re
import tomllib
import unicodedata
from importlib.resources import files

_WORD = re.compile(
    # a character of a script without spaces, a symbol, or a word ("C++" differs from "C")
    r"[\u3040-\u30ff\u3400-\u9fff\u2190-\u2bff\U0001f000-\U0001faff]"
    r"|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:'[^\W_]+)*[+#]*"
)
_NOTHING = re.compile(
    r"""[\s("'*]*(?:none|nothing|n/a|no\ (?:clear\ |known\ |particular\ )?(?:preferences?|evidence|summary|signals)
    |(?:there\ is\ )?(?:not\ enough|too\ little|insufficient)\ evidence)
    (?:\ (?:yet|so\ far|is|are|was|were|known|found|of|for|this|any|the|user|preferences?|evidence|to|say|tell|a))*
    [\s.!)"'*]*""",
    re.IGNORECASE | re.VERBOSE,
)
_LISTS = tomllib.loads(files("popi.profiles.statements").joinpath("phrases.toml").read_text(encoding="utf-8"))
DECORATION = r"[\s*_#\"'“«>(]*"
"""What may stand before a phrase."""


def _any_of(name: str) -> str:
    # Accept both forms of apostrophe.
    return "(?:" + "|".join(_LISTS[name]).replace(" ", r"\s+").replace("'", "['’]") + ")"


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(DECORATION + pattern, re.IGNORECASE)


GOES_ON = _compiled(rf"(?:{_any_of('goes_on')}\b|{_any_of('goes_on_unspaced')})")
PREAMBLE = _compiled(
    rf"(?:{_any_of('courtesy')}[!,.。！，、]+|{_any_of('introduction')}[^:：.!?。！？\n]{{0,100}}[:：]\**)\s*"
)
TITLE = _compiled(_any_of("title"))
REFUSAL = _compiled(_any_of("refusal"))
ADDRESSED = _compiled(_any_of("addressed"))
LETTER = re.compile(r"[^\W\d_]")


def words(text: str) -> list[str]:
    """The folded words and symbols of a text; for scripts without spaces, the characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))


def normal(text: str) -> str:
    """The normal form of a text, for comparing wordings: compatibility forms, case, punctuation and white space don't
    matter.
    """
    return " ".join(words(text)) or text.strip()


def asks(text: str) -> bool:
    """Whether a text is a question."""
    return text.rstrip("\"'»”’」* ").endswith(("?", "？", "؟"))


def says_nothing(text: str) -> bool:
    """Whether a text only says that there is nothing to say ("none", "not enough evidence")."""
    return not text.strip() or _NOTHING.fullmatch(text.strip()) is not None

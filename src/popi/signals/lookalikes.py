"""Text as a reader perceives it: without invisible characters, and regardless of a letter's alphabet.

Forbidden strings (a tag, a special token, a link) can be disguised with a zero-width space inside, full-width letters,
or a Cyrillic а. `fold` undoes this for matching; the original text is not changed. The table covers lookalikes of the
letters and signs in such strings, not all of Unicode's (UTS 39).
"""

import re
import unicodedata

_ALIKE = {
    "<": "‹〈⟨❮˂ᐸ≺⧼",
    ">": "›〉⟩❯˃ᐳ≻⧽",
    "|": "∣ǀ❘│┃￨",
    "/": "∕⁄⧸╱",
    "\\": "∖⧵╲",
    "[": "【〔⟦",
    "]": "】〕⟧",
    "-": "‐‑‒–—−",
    "_": "ˍ",
    ":": "∶ː։",
    "a": "аɑα",
    "b": "ьβв",
    "c": "сϲ",
    "d": "ԁ",
    "e": "еεєҽ",
    "g": "ɡ",
    "h": "һн",
    "i": "іιıӏ",
    "j": "јϳ",
    "k": "кκ",
    "l": "ⅼ",
    "m": "м",
    "n": "ոη",
    "o": "оοօσ",
    "p": "рρ",
    "q": "ԛ",
    "r": "г",
    "s": "ѕ",
    "t": "тτ",
    "u": "υսц",
    "v": "νѵ",
    "w": "ԝω",
    "x": "хχ",
    "y": "уγү",
    "z": "ᴢ",
}
_TO = {ord(alike): plain for plain, several in _ALIKE.items() for alike in several}
# Fillers that are letters by category, and mathematical invisibles.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5")
_HIDDEN = re.compile(
    "[\U000e0000-\U000e007f]"  # tags: ASCII that is invisible to people but readable for models
    "|(?<=[\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef]+"  # a letter takes one selector
)


def without_hidden(text: str) -> str:
    """Remove characters that can carry hidden text: tags, and runs of variation selectors."""
    return text if text.isascii() else _HIDDEN.sub("", text)


def fold(text: str) -> str:
    """Lower-case text without invisible characters or accents, with lookalikes replaced."""
    return text.translate(_FOLDED) if hides(text) else text.lower()


def hides(text: str) -> bool:
    """Whether `fold` does more than lower-casing, because the text is not all visible ASCII."""
    return _ODD.search(text) is not None


def fold_with_places(text: str) -> tuple[str, list[int]]:
    """`fold`, and for each folded character the index of its original in `text`."""
    folded: list[str] = []
    places: list[int] = []
    for index, character in enumerate(text):
        for plain in _FOLDED[ord(character)]:
            folded.append(plain)
            places.append(index)
    return "".join(folded), places


_ODD = re.compile(r"[^\x09-\x0d\x1c-\x7e]")


class _Folded(dict[int, str]):
    """Code point → folded text, cached; `str.translate` reads it at C speed."""

    def __missing__(self, code: int) -> str:
        if len(self) >= 65536:  # bound the memory if someone sends all of Unicode
            self.clear()
        plain = self[code] = _plain(chr(code))
        return plain


_FOLDED = _Folded()


def _plain(character: str) -> str:
    if character in _BLANK:
        return ""
    if character.isascii():
        return character.lower() if character.isprintable() or character.isspace() else ""
    visible = []
    for part in unicodedata.normalize("NFKD", character):
        for lower in part.lower():
            plain = _TO.get(ord(lower), lower)
            if plain not in _BLANK and unicodedata.category(plain) not in ("Mn", "Me", "Cf", "Cc", "Cs"):
                visible.append(plain)
    return "".join(visible)

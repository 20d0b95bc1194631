"""Text as a reader takes it, who sees neither invisible characters nor which alphabet a letter is from.

What should not be spelt (a tag, a special token, a link) can be spelt with a zero-width space inside, in full-width
letters, or with a Cyrillic а. `fold` undoes that for looking; the text itself stays as it was written. The table has
the lookalikes of the letters and signs that such strings are made of. It is not all of Unicode's (UTS 39).
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
    "[\U000e0000-\U000e007f]"  # tags: ASCII that nobody sees, and models read
    "|(?<=[\ufe00-\ufe0f\U000e0100-\U000e01ef])[\ufe00-\ufe0f\U000e0100-\U000e01ef]+"  # a letter takes one selector
)


def without_hidden(text: str) -> str:
    """Text without the characters that can carry other text unseen: tags, and variation selectors in a row."""
    return text if text.isascii() else _HIDDEN.sub("", text)


def fold(text: str) -> str:
    """Lower-case text without invisible characters, accents and alphabets that look like another."""
    return text.translate(_FOLDED) if hides(text) else text.lower()


def hides(text: str) -> bool:
    """Whether anything but lower case is to be done in `fold`: it is not all ASCII that a reader sees."""
    return _ODD.search(text) is not None


def fold_with_places(text: str) -> tuple[str, list[int]]:
    """`fold`, and for each of its characters the index in `text` of the one that it came from."""
    folded: list[str] = []
    places: list[int] = []
    for index, character in enumerate(text):
        for plain in _FOLDED[ord(character)]:
            folded.append(plain)
            places.append(index)
    return "".join(folded), places


_ODD = re.compile(r"[^\x09-\x0d\x1c-\x7e]")


class _Folded(dict[int, str]):
    """Code point → folded, each worked out once; `str.translate` reads it at the speed of C."""

    def __missing__(self, code: int) -> str:
        if len(self) >= 65536:  # someone sends all of Unicode
            self.clear()
        plain = self[code] = _plain(chr(code))
        return plain


_FOLDED = _Folded()


def _plain(character: str) -> str:
    if character in _BLANK:
        return ""
    if character.isascii():
        return character.lower() if character.isprintable() or character.isspace() else ""
    found = []
    for part in unicodedata.normalize("NFKD", character):
        for small in part.lower():
            kept = _TO.get(ord(small), small)
            if kept not in _BLANK and unicodedata.category(kept) not in ("Mn", "Me", "Cf", "Cc", "Cs"):
                found.append(kept)
    return "".join(found)

"""Whether a clause says again what the user has forbidden, in the same words or in others.

No model is asked. The same words count in any language, however they are written (popi.statements.normal). Then
content words are compared, which is of English. Both texts are folded (NFKC, no case), words that carry no preference
("the user prefers ... answers") are left out, endings are cut, and words of one meaning count as one (`MEANINGS`). A
word counts as denied behind "no", "not", "avoid" and their like, up to the next comma, "but" or end of a sentence.
Alike are texts of which the smaller shares at least `THRESHOLD` of its content words with the other (the overlap
coefficient); a word is shared where both affirm it or both deny it. docs/profiles.md states what it catches and what
it takes wrongly.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from popi.statements import normal

LEAST_WORDS = 3
"""Of so many words or more, a statement counts as said where its words stand within another's."""
THRESHOLD = 0.5
"""From this share of common content words on two texts are alike: one of two, two of three or four, three of five."""

EMPTY = frozenset(
    """a about after again all also always an and any anything are as ask asks at be been being both but by can cares
    care choose chooses come comes could do does doing done each else enjoy enjoys ever every everything find finds
    for from general generally get gets give gives given good has have having he her him his how if in into is it
    its itself just keep keeps kept kind like liked likes love loves make makes many may me mention mentions might
    more most mostly much must my need needs of often on one ones only or other out over own people please possible
    prefer preference preferences preferred prefers quite rather really reply replies response responses answer
    answers answering say says said see seem seems several she should so some someone something sort sometimes such
    tend tends text texts than that the their them then there these they thing things this those to too tone try
    tries up us use user users uses using usually very want wants was way ways we well were what when where which
    while who whom whose will wish wishes with would write writes writing written you your yours appreciate
    appreciates value values favour favours favor favors expect expects seek seeks look looks go goes went show
    shows shown here whenever wherever i am style included include includes especially particularly lean leans
    toward towards fan happy person somebody assistant""".split()
)
DENY = frozenset(
    """no not never avoid avoids avoiding without dislike dislikes hate hates skip skips against cannot stop stops leave
    leaves omit omits drop""".split()
)
MEANINGS = tuple(
    frozenset(line.split())
    for line in """short brief concise terse succinct compact briefly shortly laconic snappy crisp
    long lengthy detailed detail thorough extensive exhaustive elaborate comprehensive depth
    simple plain easy basic beginner jargon-free simply layman uncomplicated
    technical expert advanced specialist jargon
    formal polite official formally professional businesslike courteous
    casual informal relaxed friendly chatty colloquial
    playful funny humour humor joke jokes witty jokey humorous fun
    serious earnest sober solemn sobriety gravity grave
    list bullet bullets bulleted itemised itemized points enumerate
    table tabular tables spreadsheet
    paragraph prose paragraphs flowing
    example instance illustration illustrate exemplify
    number figure statistic data quantitative numeric digits
    story anecdote narrative tale
    code snippet programming coding programmer developer software programs
    emoji emojis emoticon smiley smileys
    question ask questions query
    step steps stepwise walkthrough
    picture image diagram drawing visual
    link url source citation reference cite
    vegetarian meatless meat
    vegan plant-based
    child kid children kids son daughter
    doctor physician medic
    lawyer attorney solicitor
    teacher schoolteacher instructor
    student pupil undergraduate
    spouse wife husband partner married
    dog puppy dogs
    cat kitten cats
    car automobile vehicle
    job profession occupation work works career employed
    live reside lives resident based
    quick fast rapid quickly swift
    metaphor analogy comparison analogies
    summary summarise summarize recap overview tldr
    warning caution caveat disclaimer warn
    diabetes diabetic
    pregnant pregnancy expecting
    depression depressed
    religious faith church
    gay homosexual
    anxious anxiety nervous
    money budget cheap cost inexpensive affordable price
    elderly old aged senior
    direct straightforward blunt frank candid""".splitlines()
)
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:-[^\W_]+)*"
)
ENDS_DENIAL = frozenset({".", ",", ";", ":", "!", "?", "(", ")", "but", "yet", "although"})
_TOKEN = re.compile(rf"{_WORD.pattern}|[.,;:!?()]")
_NOT_ONLY = re.compile(r"\bnot (?:only|just|merely)\b")
_INSTEAD = re.compile(r"\b(?:rather than|instead of|free of|free from)\b")
_ENDINGS = ("ically", "ations", "ation", "ings", "ing", "ies", "edly", "ed", "ly", "es", "s")


class Content(NamedTuple):
    """What a text says: of each content word whether it is affirmed (True), denied (False), or perhaps both."""

    words: dict[str, set[bool]]
    folded: str


class Bans:
    """What is forbidden, ready to be compared with many clauses.

    Args:
        forbidden: the statements.
    """

    def __init__(self, forbidden: Iterable[str]) -> None:
        listed = list(forbidden)
        self._normal = [f" {normal(one)} " for one in listed]
        self._contents = [_content(one) for one in listed]

    def hit(self, text: str) -> bool:
        """Whether `text` says one of them: in the same words of any language, alone or within others, or in others."""
        plain = f" {normal(text)} "
        if any(one == plain or (one.count(" ") > LEAST_WORDS and one in plain) for one in self._normal):
            return True
        content = _content(text)
        return any(_alike(content, one) >= THRESHOLD for one in self._contents)


def similarity(one: str, other: str) -> float:
    """How much two texts say the same, 0 to 1."""
    return _alike(_content(one), _content(other))


def _alike(a: Content, b: Content) -> float:
    if a.folded == b.folded:
        return 1.0
    if not a.words or not b.words:
        return 0.0
    shared = [word for word in a.words.keys() & b.words.keys() if a.words[word] & b.words[word]]
    return len(shared) / min(len(a.words), len(b.words))


def _content(text: str) -> Content:
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    folded = re.sub(r"\b(can|won|shan)'?t\b", r"\1 not", re.sub(r"n't\b", " not", folded))
    plain = _INSTEAD.sub("without", _NOT_ONLY.sub("", folded))
    found: dict[str, set[bool]] = {}
    affirmed = {True}
    for token in _TOKEN.findall(plain):
        if token in ENDS_DENIAL:
            affirmed = {True}
        elif token in DENY:
            affirmed = {False}
        elif token == "and" and True not in affirmed:
            affirmed = {True, False}  # "no jokes and puns" denies both, "no jokes and keep it short" does not
        elif token not in EMPTY:
            stem = _stem(token)
            found.setdefault(_MEANING.get(token) or _MEANING.get(stem) or stem, set()).update(affirmed)
    return Content(found, " ".join(_WORD.findall(folded)))


def _stem(word: str) -> str:
    """Cut one ending; what is left has three letters or more."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)]
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


_MEANING = {form: min(group) for group in MEANINGS for word in group for form in (word, _stem(word))}

"""The attributes that users of the nano world can care about, and the words people use for them.

Seven attributes of a response, with two or three values each. Every value has distinctive words, so the values that a
text names can be parsed exactly (truth.py).
"""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "tone": ("formal", "casual"),
    "level": ("simple", "technical"),
    "layout": ("list", "prose"),
    "length": ("short", "long"),
    "mood": ("playful", "serious"),
    "support": ("example", "numbers", "story"),
    "closing": ("question", "recap", "warning"),
}

Preference = tuple[str, str]
"""(attribute, value), such as ("tone", "formal")."""

PRIOR: dict[int, tuple[float, ...]] = {2: (0.6, 0.4), 3: (0.4, 0.3, 0.3)}
"""Probability of each value among users who care about an attribute with 2 or 3 values; not uniform."""

PHRASES: dict[Preference, tuple[str, ...]] = {
    ("tone", "formal"): ("a formal tone", "polite wording", "courteous style", "proper manners"),
    ("tone", "casual"): ("a casual tone", "relaxed wording", "chatty style", "friendly manners"),
    ("level", "simple"): ("simple words", "beginner level", "plain explanations", "everyday language"),
    ("level", "technical"): ("technical words", "expert level", "specialist explanations", "professional language"),
    ("layout", "list"): ("bullet lists", "itemized points", "enumerated notes"),
    ("layout", "prose"): ("flowing prose", "full paragraphs", "connected sentences"),
    ("length", "short"): ("short answers", "brief replies", "concise texts"),
    ("length", "long"): ("long answers", "lengthy replies", "extensive texts"),
    ("mood", "playful"): ("a playful mood", "humor", "jokes"),
    ("mood", "serious"): ("a serious mood", "gravity", "sobriety"),
    ("support", "example"): ("examples", "illustrations", "sample cases"),
    ("support", "numbers"): ("numbers", "statistics", "figures"),
    ("support", "story"): ("stories", "anecdotes", "tales"),
    ("closing", "question"): ("questions", "asking back", "queries"),
    ("closing", "recap"): ("recaps", "overviews", "wrapping up"),
    ("closing", "warning"): ("warnings", "cautions", "caveats"),
}
"""Phrases that name each value, in summaries and in what people say."""

_SHARED = set(
    "a tone wording style manners words level explanations language points notes answers replies texts".split()
)
_SHARED |= set("mood cases sentences back up full".split())

KEYWORDS: dict[str, Preference] = {
    word: preference
    for preference, phrases in PHRASES.items()
    for p in phrases
    for word in p.split()
    if word not in _SHARED
}
"""Words that identify a value; each belongs to exactly one."""

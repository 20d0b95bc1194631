"""What a preference summary may not carry: links, code, markup, encoded text, instructions to the model.

A summary goes into prompts that nobody looks at, so it should say how a person likes to be answered, and nothing else.
`screened` is for what a model wrote: it leaves out. `checked` is for what a person wrote: nothing of theirs is changed
unseen, it is refused and said why. Either takes out characters that nobody sees.

Preferences are imperative by nature ("answer in French", "never use emojis"), and people have models, prompts and rules
for a subject. So an instruction *to the model* is only what tells it to drop what was said before, speaks to it of its
own instructions, makers or limits, or asks for secrecy, a tool call or a fixed wording; the first in the languages of
`patterns.OTHER_TONGUES`, too. That is a list, and it has gaps: docs/security.md measures them.
Text is looked at folded (`popi.signals.lookalikes`), so that no alphabet or invisible character hides it.
"""

from popi.profiles.screening.screen import Screened, Unfit, checked, found_in, screened, screened_parts, visible

__all__ = ["Screened", "Unfit", "checked", "found_in", "screened", "screened_parts", "visible"]

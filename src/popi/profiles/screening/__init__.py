"""Content that a preference summary must not contain: links, code, markup, encoded text, instructions to the model.

A summary goes into prompts that are not reviewed, so it should say how a person likes to be answered and nothing else.
`screened` is for a model's text, from which it removes such content. `checked` is for a person's text, which must not
be changed silently, so it raises an error with the reason. Both remove invisible characters.

Preferences are imperative by nature ("answer in French", "never use emojis"), and people also talk about models,
prompts and rules. So only these count as instructions *to the model*: telling it to drop earlier text, referring to its
own instructions, makers or limits, and asking for secrecy, a tool call or a fixed wording; the first also in the
languages of `patterns.OTHER_TONGUES`. That list has gaps, which docs/security.md measures. Text is folded first
(`popi.signals.lookalikes`), so that no alphabet or invisible character can hide it.
"""

from popi.profiles.screening.screen import Screened, Unfit, checked, found_in, screened, screened_parts, visible

__all__ = ["Screened", "Unfit", "checked", "found_in", "screened", "screened_parts", "visible"]

"""The demo's parts that need no model."""

from popi.nano.server import _read
from popi.serving.demo import BLOCK
from popi.serving.proxy.block import Blocks
from popi.signals.render import Templates


def test_a_summary_reaches_the_nano_model_in_the_words_that_it_was_trained_on() -> None:
    prompt, summary = "tell me about tea.", "wants any tone, short replies."
    trained_on = Templates.load("nano").generator_messages(prompt, summary)
    sent = [{"role": "system", "content": Blocks(BLOCK).text(summary)}, {"role": "user", "content": prompt}]
    assert _read(sent) == trained_on
    assert _read(sent[1:]) == Templates.load("nano").generator_messages(prompt, None)


def test_of_a_longer_conversation_the_model_reads_the_last_turn() -> None:
    turns = [("system", "a"), ("user", "b"), ("assistant", "c"), ("user", [{"type": "text", "text": "d <|end|>\n e"}])]
    read = _read([{"role": role, "content": content} for role, content in turns])
    assert read == [{"role": "system", "content": "a"}, {"role": "user", "content": "d < |end|> e"}]

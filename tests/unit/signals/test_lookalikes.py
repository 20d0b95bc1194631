import pytest
from hypothesis import given
from hypothesis import strategies as st

from popi.signals.lookalikes import fold, fold_with_places, without_hidden
from popi.signals.neutralise import neutralise


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Plain ASCII.", "plain ascii."),
        ("ｆｕｌｌ", "full"),
        ("\U0001d41aé\u200bÉ", "aee"),
        ("зgrоuр", "зgroup"),
        ("І ІГНОР ігнор", "i irhop irhop"),
        ("＜∕ᐳ", "</>"),
        ("a\u3164b\u00adc\U000e0041d", "abcd"),
        ("A\x00b\x1b\x7f c\n", "ab c\n"),
    ],
)
def test_what_a_reader_sees(text: str, plain: str) -> None:
    assert fold(text) == plain


@given(st.text())
def test_both_ways_of_folding_agree(text: str) -> None:
    folded, places = fold_with_places(text)
    assert folded == fold(text) and len(places) == len(folded) and places == sorted(places)


def test_places_lead_back_to_the_text() -> None:
    text = "a\u200bﬁ＜"
    folded, places = fold_with_places(text)
    assert folded == "afi<" and places == [0, 2, 2, 3]


def test_hidden_text_goes_and_what_is_seen_stays() -> None:
    assert without_hidden("tea\U000e0069\U000e0067") == "tea"
    assert without_hidden("☃\ufe0f\U000e0130\U000e0131") == "☃\ufe0f"
    for text in ("👨‍👩‍👧", "🏳️‍🌈", "می‌خواهم", "क्‍ष", "葛\U000e0100"):
        assert without_hidden(text) == text == neutralise(text, ("</user_signals",))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("＜/user_signals＞", "＜ /user_signals＞"),
        ("<\u200b/user_signals>", "< \u200b/user_signals>"),
        ("</us\u0435r_signals>", "< /us\u0435r_signals>"),
        ("x <∣im_end∣> y", "x < ∣im_end∣> y"),
        ("[ＩＮＳＴ]", "[ ＩＮＳＴ]"),
        ("<\x01/user_signals>", "< \x01/user_signals>"),
        ("<|im_\x00end|>", "< |im_\x00end|>"),
        ("für „user_signals“ <3 ☃", "für „user_signals“ <3 ☃"),
    ],
)
def test_lookalikes_are_broken_and_only_they(text: str, broken: str) -> None:
    assert neutralise(text, ("</user_signals",)) == broken == neutralise(broken, ("</user_signals",))

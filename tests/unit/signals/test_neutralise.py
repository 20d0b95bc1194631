"""Special tokens are known by their shape; ordinary text stays as it is."""

import pytest

from popi.signals.neutralise import neutralise

DELIMITERS = ("<user_preferences", "</user_preferences")


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        '<|"|>',
        "<｜User｜>",
        "<|turn>",
        "<turn|>",
        "<|/tool|>",
        "[|system|]",
        "[|endofturn|]",
        "<s>",
        "</s>",
        "</ s>",
        "<bos >",
        "<think/>",
        "<observation>",
        "<extra_id_0>",
        "<start_of_turn>",
        "<unused7>",
        "<reserved_106>",
        "<SPECIAL_12>",
        "<tool_call>",
        "</ tool_call>",
        "<eos_token>",
        "<fim_prefix>",
        "<loc0001>",
        "<<SYS>>",
        "<</SYS>>",
        "[INST]",
        "[inst]",
        "[/INST]",
        "[THINK]",
        "[/THINK]",
        "[/ANYTHING_NEW]",
        "[TOOL_CALLS]",
        "[IMG_END]",
        "[gMASK]",
        "[sMASK]",
        "[unused3]",
        "[control_8]",
        "</ user_preferences>",
        "</\tuser_preferences >",
        "<user_preferences x='1'>",
        "＜extra_id_0＞",
        "［／ＴＨＩＮＫ］",
        "[/ТНІNК]",
        "<ex\u200btra_id_0>",
        "[|sys\u200btem|]",
    ],
)
def test_tokens_are_broken(token: str) -> None:
    broken = neutralise(token, DELIMITERS)
    assert broken == f"{token[0]} {token[1:]}"
    assert neutralise(broken, DELIMITERS) == broken
    assert neutralise(f"x{token}é{token}", DELIMITERS) == f"x{broken}é{broken}"


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("<|[INST]|>", "< |[ INST]|>"),
        ("[|<s>|]", "[|< s>|]"),
        ("<<extra_id_0>>", "<< extra_id_0>>"),
        ("<|a<|b|>c|>", "<|a< |b|>c|>"),
        ("<<SYS>></s>", "< <SYS>>< /s>"),
    ],
)
def test_a_token_within_another_is_broken_too(text: str, broken: str) -> None:
    assert neutralise(text) == broken == neutralise(broken)


@pytest.mark.parametrize(
    "text",
    [
        "[1] [note] [OK] [TODO] [USA] [Note 2] [x](y) [b]bold[/b] [/quote]",
        "<b>bold</b> <br/> <h1>x</h1> <div class='a_b'> <video controls> <!-- x -->",
        "List<int> Array<T> Map<K1, V1> vector<size_t> vector<int32> optional<uint8_t>",
        "a < b, x<y>z, if (a<b && c>d) { a[i_max] = b[j]; } <3",
        "café [note] naïve <div> … [TODO]",
        "</ div> < /user_preferences>",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert neutralise(text, DELIMITERS) == text


def test_long_texts_take_a_moment() -> None:
    for piece in ("<", "[", "</ ", "<|", "[|", "<a_", "[/A", "</" + " " * 50, "<" + "a" * 70 + "_"):
        assert len(neutralise(piece * (200_000 // len(piece)), DELIMITERS)) >= 190_000

import json
import time
from pathlib import Path
from typing import Any

import pytest

from popi.data.check import Report, check, load_users
from popi.errors import DataError
from popi.signals.similarity import Normal

PROMPT = "How do I repot a large monstera plant at home?"
CHOSEN = "Pick a pot two sizes up, loosen the roots gently, and water it well after the move."
REJECTED = "Monstera deliciosa is a species of flowering plant native to tropical forests of southern Mexico."
NEAR_CHOSEN = "pick a pot two sizes up; loosen the roots gently - and water it well after the big move!"
TARGET = {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}


def pair(**fields: Any) -> dict[str, Any]:
    return {"type": "pair", "prompt": "Which pan?", "chosen": "The iron one.", "rejected": "The other one.", **fields}


def report(tmp_path: Path, *users: Any, **options: Any) -> Report:
    path = tmp_path / "users.jsonl"
    path.write_text("".join((user if isinstance(user, str) else json.dumps(user)) + "\n" for user in users))
    return check(path, **options)


def kinds(found: Report) -> list[tuple[int, str, str]]:
    return [(problem.line, problem.kind, problem.field) for problem in found.problems]


def test_a_good_file_has_no_problems_and_is_counted(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        {"user_id": "a", "signals": [pair(), {"type": "post", "text": "hello"}], "targets": [TARGET]},
        {"user_id": "b", "signals": [pair()]},
    )
    assert found.ok, found.problems
    assert (found.users, found.targets, dict(found.signals)) == (2, 1, {"pair": 2, "post": 1})
    assert found.summary()[-1].strip() == "no problems"


def test_a_bad_line_never_stops_the_report(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        "{",
        {"user_id": "a", "signals": [pair(id="1"), pair(id="1")]},
        {"user_id": "b"},
        {"user_id": "a", "signals": []},
        "null",
    )
    assert kinds(found) == [
        (1, "bad line", ""),
        (2, "duplicate signal id", "signals[1]"),
        (2, "duplicate signal", "signals[1]"),
        (3, "bad line", "signals"),
        (4, "duplicate user", "user_id"),
        (5, "bad line", ""),
    ]


def test_the_same_content_at_another_time_is_a_duplicate_and_another_type_is_not(tmp_path: Path) -> None:
    signals = [{"type": "post", "text": "x", "time": 1}, {"type": "statement", "text": "x"}]
    assert report(tmp_path, {"user_id": "a", "signals": signals}).ok
    signals.append({"type": "post", "text": "x", "time": 2, "id": "n"})
    assert kinds(report(tmp_path, {"user_id": "a", "signals": signals})) == [(1, "duplicate signal", "signals[2]")]


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (pair(prompt=PROMPT, chosen=CHOSEN, rejected=REJECTED), "is the same as"),
        (pair(prompt=PROMPT.upper(), chosen=CHOSEN.rstrip("."), rejected=f"  {REJECTED}"), "is the same as"),
        (pair(prompt=[{"role": "user", "content": PROMPT}], chosen=CHOSEN, rejected=REJECTED), "is the same as"),
        (pair(prompt=PROMPT, chosen=REJECTED, rejected=CHOSEN), "swapped, is the same as"),
        (pair(prompt=PROMPT, chosen=NEAR_CHOSEN, rejected=REJECTED), "nearly the same as"),
        (pair(prompt=PROMPT, chosen=REJECTED, rejected=NEAR_CHOSEN), "swapped, is nearly the same as"),
        (pair(prompt=PROMPT, chosen=CHOSEN, rejected="I do not know."), "a response of this target"),
        ({"type": "interaction", "prompt": PROMPT, "response": NEAR_CHOSEN}, "a response of this target"),
        ({"type": "interaction", "prompt": PROMPT, "response": "No.", "edit": CHOSEN}, "a response of this target"),
        ({"type": "post", "text": CHOSEN}, "is the text of"),
    ],
)
def test_targets_among_the_signals(tmp_path: Path, signal: dict[str, Any], words: str) -> None:
    found = report(tmp_path, {"user_id": "a", "signals": [pair(), signal], "targets": [TARGET]})
    assert kinds(found) == [(1, "target among signals", "targets[0]")]
    assert words in found.problems[0].message
    assert "signals[1]" in found.problems[0].message


@pytest.mark.parametrize(
    "signal",
    [
        pair(prompt=PROMPT, chosen="Ask a florist.", rejected="I do not know."),
        pair(prompt="What is a monstera?", chosen=CHOSEN, rejected=REJECTED),
        {"type": "interaction", "prompt": PROMPT, "response": "Ask a florist."},
        {"type": "post", "text": PROMPT},
        {"type": "statement", "text": "Pick a pot two sizes up"},
    ],
)
def test_what_is_no_leak(tmp_path: Path, signal: dict[str, Any]) -> None:
    assert report(tmp_path, {"user_id": "a", "signals": [signal], "targets": [TARGET]}).ok


def test_another_users_pair_is_no_leak(tmp_path: Path) -> None:
    shown = pair(prompt=PROMPT, chosen=CHOSEN, rejected=REJECTED)
    users = [{"user_id": "a", "signals": [shown]}, {"user_id": "b", "signals": [pair()], "targets": [TARGET]}]
    assert report(tmp_path, *users).ok


def test_near_is_shingle_similarity_from_the_threshold_on() -> None:
    # 12 tokens make 10 shingles. A changed last token breaks one: 9 shared of 11, above 0.8.
    words = [f"w{i}" for i in range(12)]
    base = Normal(" ".join(words))
    assert base.near(Normal(" ".join([*words[:-1], "x"])))
    # A changed second-last token breaks two: 8 shared of 12.
    assert not base.near(Normal(" ".join([*words[:-2], "x", words[-1]])))
    # Two tokens make no shingle: only the same is near.
    assert Normal("so so").near(Normal("So, so!"))
    assert not Normal("so so").near(Normal("so no"))
    # Dropping tokens at the end: 8 of 10 shingles shared is exactly the threshold.
    assert base.near(Normal(" ".join(words[:10])))
    assert not base.near(Normal(" ".join(words[:9])))
    # Punctuation alone is not all the same.
    assert not Normal("?").near(Normal("!"))


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "我喜欢简短而清楚的回答请不要太长"
    assert Normal(text).near(Normal(text + "。"))
    assert Normal(text).near(Normal(text + "吧"))
    assert not Normal(text).near(Normal("今天天气很好我们去公园散步然后吃饭"))


def test_equal_responses(tmp_path: Path) -> None:
    user = {"user_id": "a", "signals": [pair(rejected="the iron one.")], "targets": [{**TARGET, "rejected": CHOSEN}]}
    assert kinds(report(tmp_path, user)) == [
        (1, "equal responses", "signals[0]"),
        (1, "equal responses", "targets[0]"),
    ]


def test_users_in_two_splits(tmp_path: Path) -> None:
    other = tmp_path / "test.jsonl"
    other.write_text(
        '{"user_id": "b", "signals": []}\n{\n{"user_id": "c", "prompt": "p", "chosen": "x", "rejected": "y"}'
    )
    users = [{"user_id": name, "signals": []} for name in "abc"]
    found = report(tmp_path, *users, against=[other])
    shared = "user in two splits", "user_id"
    assert kinds(found) == [(0, "lines not compared", ""), (2, *shared), (3, *shared)]
    assert found.problems[0].message.startswith(f"1 bad lines of {other}") and str(other) in found.problems[1].message
    other.write_text('{"user_id": "d", "signals": []}\n')
    assert report(tmp_path, *users, against=[other]).ok
    with pytest.raises(DataError, match="nowhere"):
        report(tmp_path, *users, against=[tmp_path / "nowhere"])


def test_preference_rows_are_reported_by_their_own_lines(tmp_path: Path) -> None:
    first = {"user_id": "a", "prompt": "Which pan?", "chosen": "The iron one.", "rejected": "Any."}
    leak = {"user_id": "a", **TARGET}
    other = {"user_id": "b", "prompt": "p", "chosen": "c", "rejected": "r"}
    found = report(tmp_path, first, other, leak, leak, "{", first, signals_per_user=2, targets_per_user=1)
    assert [(p.line, p.kind) for p in found.problems] == [(4, "target among signals"), (5, "bad line")]
    assert "line 3" in found.problems[0].message
    assert (found.users, found.windows, found.rows, found.rows_left_over) == (2, 1, 5, 2)


def test_kinds_of_line_must_not_mix(tmp_path: Path) -> None:
    found = report(tmp_path, {"user_id": "a", "signals": []}, {"user_id": "b", **TARGET})
    assert kinds(found) == [(2, "bad line", "")]


def test_training_refuses_with_the_report(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    good = {"user_id": "a", "signals": [pair()], "targets": [TARGET]}
    path.write_text("\n".join(json.dumps(user) for user in (good, {"user_id": "b", "signals": []})))
    with pytest.raises(DataError, match="line 2, targets: user 'b' has no targets"):
        load_users(path)
    assert [user.user_id for user in load_users(path, require_targets=False)] == ["a", "b"]
    path.write_text(json.dumps(good))
    assert len(load_users(path)) == 1
    path.write_text("")
    with pytest.raises(DataError, match="no users in this file"):
        load_users(path)


def test_thousands_of_users_take_seconds(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    with open(path, "w") as file:
        for number in range(3000):
            texts = [f"{number} {i} " + " ".join(f"word{(number * i) % (j + 7)}" for j in range(30)) for i in range(24)]
            signals = [pair(prompt=texts[3 * i], chosen=texts[3 * i + 1], rejected=texts[3 * i + 2]) for i in range(4)]
            targets = [dict(zip(("prompt", "chosen", "rejected"), texts[12 + 3 * i :], strict=False)) for i in range(4)]
            file.write(json.dumps({"user_id": str(number), "signals": signals, "targets": targets}) + "\n")
    start = time.process_time()
    assert check(path).users == 3000
    assert time.process_time() - start < 10  # about 1 s; 100,000 users stay within minutes on a slow machine


def test_a_target_that_comes_twice(tmp_path: Path) -> None:
    found = report(tmp_path, {"user_id": "a", "signals": [], "targets": [TARGET, TARGET]})
    assert kinds(found) == [(1, "duplicate target", "targets[1]")]
    assert "the same target as targets[0]" in str(found.problems[0])


def test_a_target_that_comes_twice_in_a_window_is_named_by_its_lines(tmp_path: Path) -> None:
    rows = [{"user_id": "a", **{key: pair()[key] for key in TARGET}}, *[{"user_id": "a", **TARGET}] * 2]
    found = report(tmp_path, *rows, signals_per_user=1, targets_per_user=2)
    assert [str(problem) for problem in found.problems] == ["line 3: the same target as line 2"]

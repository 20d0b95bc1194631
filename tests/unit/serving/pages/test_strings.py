"""Every language has every string, with the same placeholders; the language is the one that the browser asks for."""

from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import get_args

import pytest
from babel import Locale
from serving_client import ADMIN, People

from popi.errors import ConfigError
from popi.profiles.screening import checked
from popi.serving.pages import colour
from popi.serving.pages.changes import CHOICES
from popi.serving.pages.render import Renderer
from popi.serving.pages.settings import PageSettings
from popi.serving.pages.strings import FILES, for_the_team, language, preferred, say, strings, when

OTHERS = sorted(set(FILES) - {"en"})
USERS = {key: text for key, text in strings().items() if not for_the_team(key)}


def placeholders(text: str) -> list[str]:
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)


def test_the_languages_are_those_of_the_setting() -> None:
    (literal, _) = get_args(PageSettings.model_fields["language"].annotation)
    assert set(get_args(literal)) == set(FILES) == {"en", "de", "es", "fr", "zh", "ja", "ar"}


@pytest.mark.parametrize("name", OTHERS)
def test_every_language_has_every_string_with_the_same_placeholders(name: str) -> None:
    there = strings(name)
    assert list(there) == list(USERS)
    for key, english in USERS.items():
        text = there[key]
        if isinstance(english, str):
            assert placeholders(text) == placeholders(english), key
            continue
        # A string that counts has every plural form of its language; only small numbers may be words.
        assert set(text) == {*Locale(name).plural_form.rules, "other"}, key
        for form, said in text.items():
            wanted = placeholders(english["other"])
            assert placeholders(said) in ([wanted, []] if form in ("one", "two") else [wanted]), (key, form)
    same = {key for key in USERS if there[key] == strings()[key]} - {"dir", "about_clause"}
    assert len(same) < 5, same  # translated, not copied


@pytest.mark.parametrize("name", sorted(FILES))
def test_it_can_be_said_and_what_is_chosen_may_be_stored(name: str) -> None:
    token = language.set(name)
    try:
        for n in (0, 1, 2, 3, 11, 100):
            assert "{" not in say("why_count", n=n)
        assert "2026" in when(datetime(2026, 3, 4, 5, 6, tzinfo=UTC)) and "05:06 UTC" in when(
            datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
        )
        assert say("admin_title") == "Users"
        for kind, options in CHOICES.items():
            for option in options:
                text = say(f"choice_{kind}_{option}")
                assert checked(text) == text
    finally:
        language.reset(token)


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("pt-BR,pt;q=0.9,es;q=0.5,en;q=0.4", "es"),
        ("en;q=0.2, ja ;q=0.7, ar;q=0.7", "ja"),
        ("zh-Hant-TW", "zh"),
        ("de;q=0, fr;q=0.1", "fr"),
        ("tlh, *;q=0.5", "en"),
        ("FR-ch", "fr"),
        ("../../x,,;q=1,de;q=9", "en"),
    ],
)
def test_the_language_is_what_the_browser_asks_for(accepted: str, wanted: str) -> None:
    assert preferred(accepted) == wanted


def test_pages_are_in_the_users_language_and_the_teams_in_english(people: People) -> None:
    people.client.cookies.clear()
    asks = {"accept-language": "ar;q=0.9, de;q=0.1"}
    assert 'lang="ar" dir="rtl"' in people.client.get("/me", headers=asks).text
    url = people.ask("POST", "/users/ada/link").json()["url"]
    people.client.get(url)
    text = people.client.get("/me", headers=asks).text
    assert strings("ar")["profile_title"] in text and strings("ar")["choice_tone_plain"] in text
    assert strings("de")["profile_title"] in people.client.get("/me", headers={"accept-language": "de"}).text
    assert strings()["profile_title"] in people.client.get("/me").text  # and no request's language outlives it
    assert ">Sign in<" in people.client.get("/admin", headers=asks).text
    people.client.post("/admin/sign-in", data={"key": ADMIN})


# -- what else a product sets -----------------------------------------------------------------------------------------


def test_contrast_is_wcags() -> None:
    assert round(colour.contrast("#000000", "#ffffff"), 2) == 21 and colour.contrast("#777777", "#777777") == 1
    assert round(colour.contrast("#767676", "#ffffff"), 2) == 4.54  # the lightest grey that passes on white


@pytest.mark.parametrize("value", ["#2f5d50", "#7a1fa2", "#00008b", "#000000", "#a01818"])
def test_a_colour_can_be_read_in_the_light_and_in_the_dark(value: str) -> None:
    style = colour.style(PageSettings(colour=value).colour or "")
    light, dark = (
        dict(part.split(": ") for part in one.split("{")[-1].split("}")[0].strip(" ;").split("; "))
        for one in style.split("@media")
    )
    for found, paper in ((light, "#ffffff"), (dark, "#201f1b")):
        assert colour.contrast(found["--accent"], paper) >= 4.5
        assert colour.contrast(found["--accent"], found["--on-accent"]) >= 4.5
    assert light["--accent"] == value


@pytest.mark.parametrize("value", ["#8fc3b1", "#ffff00", "green", "#fff", "#2f5d50; }"])
def test_a_colour_that_can_not_be_read_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="contrast|rrggbb"):
        PageSettings(colour=value)


def test_a_logo_is_a_picture_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    found = Renderer(PageSettings(logo=tmp_path / "logo.svg"), False).file("logo")
    assert found is not None and found.headers["content-type"] == "image/svg+xml" and b"svg" in bytes(found.body)
    assert Renderer(PageSettings(), False).file("logo") is None
    with pytest.raises(ConfigError, match="logo.exe"):
        PageSettings(logo=tmp_path / "logo.exe")
    with pytest.raises(ConfigError, match="can't be read"):
        Renderer(PageSettings(logo=tmp_path / "missing.png"), False)

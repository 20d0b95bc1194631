"""The product's colour on the pages, with WCAG contrast on both light and dark backgrounds."""

import re

MIN_CONTRAST = 4.5
"""Minimum contrast of text (WCAG 2.2, 1.4.3)."""
LIGHT_BACKGROUNDS = ("#e9e9e9", "#ffffff")
"""The darkest and the lightest background in light mode."""
DARK_BACKGROUND = "#38352e"
"""The lightest background in dark mode."""


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (`#rrggbb`), from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def checked_colour(value: str) -> str:
    """Check that text in a colour is readable on the pages.

    Raises:
        ValueError: it is not a colour, or its contrast is too low; the message gives the contrast.
    """
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", value):
        raise ValueError(f"give a colour as #rrggbb, such as #2f5d50; got {value!r}")
    if (lowest := min(contrast(value, background) for background in LIGHT_BACKGROUNDS)) < MIN_CONTRAST:
        raise ValueError(
            f"text in {value} can't be read on a light background: contrast {lowest:.1f}; it must be at least "
            f"{MIN_CONTRAST}"
        )
    return value


def style(value: str) -> str:
    """A style sheet that sets the colour, lightened in dark mode as far as necessary."""
    share = next(
        share for share in range(0, 101, 5) if contrast(_lighter(value, share), DARK_BACKGROUND) >= MIN_CONTRAST
    )
    light, dark = _rules(value, "#ffffff", 10), _rules(_lighter(value, share), "#171613", 14)
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _rules(accent: str, paper: str, share: int) -> str:
    text = max(("#ffffff", "#10201b"), key=lambda one: contrast(one, accent))
    return f"--accent: {accent}; --on-accent: {text}; --tint: {_mixed(paper, accent, share)};"


def _lighter(value: str, share: int) -> str:
    return _mixed(value, "#ffffff", share)


def _mixed(one: str, other: str, share: int) -> str:
    """Mix `share` percent of `other` into `one`."""
    pairs = zip(_parts(one), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share / 100):02x}" for a, b in pairs)


def _parts(value: str) -> list[int]:
    return [int(value[at : at + 2], 16) for at in (1, 3, 5)]


def _luminance(value: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in _parts(value))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

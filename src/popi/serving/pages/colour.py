"""The product's colour on the pages, dark enough for light paper and light enough for dark: WCAG's contrast."""

import re

LEAST = 4.5
"""Contrast of text (WCAG 2.2, 1.4.3)."""
PAPERS = ("#e9e9e9", "#ffffff")
"""The darkest and the lightest that the colour stands on in the light."""
DARK = "#38352e"
"""The lightest that it stands on in the dark."""


def contrast(one: str, other: str) -> float:
    """Between two colours (`#rrggbb`): from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def checked_colour(value: str) -> str:
    """A colour that can be read on the pages.

    Raises:
        ValueError: it is none, or too pale; the message says how pale.
    """
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", value):
        raise ValueError(f"give a colour as #rrggbb, such as #2f5d50; got {value!r}")
    if (found := min(contrast(value, paper) for paper in PAPERS)) < LEAST:
        raise ValueError(
            f"text in {value} can't be read on light paper: contrast {found:.1f}; take one of {LEAST} or more"
        )
    return value


def style(value: str) -> str:
    """A style sheet that puts the colour in place; in the dark it is as much lighter as it has to be."""
    share = next(share for share in range(0, 101, 5) if contrast(_lighter(value, share), DARK) >= LEAST)
    light, dark = _rules(value, "#ffffff", 10), _rules(_lighter(value, share), "#171613", 14)
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _rules(accent: str, paper: str, share: int) -> str:
    text = max(("#ffffff", "#10201b"), key=lambda one: contrast(one, accent))
    return f"--accent: {accent}; --on-accent: {text}; --tint: {_mixed(paper, accent, share)};"


def _lighter(value: str, share: int) -> str:
    return _mixed(value, "#ffffff", share)


def _mixed(one: str, other: str, share: int) -> str:
    """`share` percent of the other in the one."""
    pairs = zip(_parts(one), _parts(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share / 100):02x}" for a, b in pairs)


def _parts(value: str) -> list[int]:
    return [int(value[at : at + 2], 16) for at in (1, 3, 5)]


def _luminance(value: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in _parts(value))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

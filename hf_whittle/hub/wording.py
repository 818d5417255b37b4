"""Names and numbers as a card's Markdown shows them; nothing a user wrote can break the page."""

import math
import re
from typing import Any


def as_title(name: str) -> str:
    """A name as a heading."""
    return re.sub(r"[^\w.\- ]+", "-", name)


def as_number(value: float) -> str:
    """A number as a person reads it: three digits and a unit where it is large."""
    if not math.isfinite(value):
        return str(value)
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1e4 else f"{value:.4g}"


def as_checkpoint(facts: dict[str, Any]) -> str:
    """A checkpoint's name, linked where it is one of the Hub."""
    if "on_hub" in facts and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", facts["name"]):
        return f"[{facts['name']}](https://huggingface.co/{facts['name']})"
    return as_code(facts["name"])


def as_code(text: object) -> str:
    """Text of a user as a Markdown code span that nothing in it can end."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"

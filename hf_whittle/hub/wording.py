"""Names and numbers for the Markdown of a card, escaped so that no name breaks the page."""

import math
import re

from ..record.facts import SourceFacts


def as_title(name: str) -> str:
    """A name as a heading."""
    return re.sub(r"[^\w.\- ]+", "-", name)


def as_number(value: float) -> str:
    """A number for people: three digits and a unit if it is large."""
    if not math.isfinite(value):
        return str(value)
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1e4 else f"{value:.4g}"


def as_checkpoint(source: SourceFacts) -> str:
    """A checkpoint's name, with a link if the Hub has it."""
    page = page_of(source)
    return as_link(source.name, page) if page else as_code(source.name)


def page_of(source: SourceFacts) -> str | None:
    """Address of a checkpoint on the Hub; `None` if it is not there."""
    is_named = source.on_hub and re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", source.name)
    return f"https://huggingface.co/{source.name}" if is_named else None


def as_link(text: str, address: str) -> str:
    """A link, of parts that hold no brackets."""
    return f"[{text}]({address})"


def as_code(text: object) -> str:
    """A user's text as a Markdown code span that nothing in it can end."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"

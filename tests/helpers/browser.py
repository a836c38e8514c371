"""What a tab of the browser shows."""

from typing import Any


def column(tab: Any, selector: str, at: int) -> list[str]:
    """Return the texts of a table's column; the first is 1."""
    cells = tab.locator(f"{selector} tbody tr > :nth-child({at})")
    return [text.strip() for text in cells.all_inner_texts()]


def overflows(tab: Any) -> bool:
    """Return whether the page scrolls sideways."""
    return tab.evaluate("document.documentElement.scrollWidth > window.innerWidth")

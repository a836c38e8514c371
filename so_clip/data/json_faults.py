"""Explains why a text is not JSON: people and language models make few kinds of mistakes."""

import json
import re

_QUOTES = "'`´‘’“”„«»"
_WORDS = {"None": "null", "True": "true", "False": "false", "undefined": "null"}
# Before and after code in Markdown, as language models write it.
FENCE = "```"


def json_fault(text: str, error: json.JSONDecodeError) -> str:
    """Return the line of the first fault, the problem there, and how to correct it.

    Args:
        text: the whole text.
        error: what Python's parser says about it.
    """
    at = min(error.pos, len(text))
    rest, before = text[at:], text[:at].rstrip()
    if rest.startswith(",") and re.match(r",\s*[}\]]", rest):  # Python 3.13 and later
        rest, before = rest[1:].lstrip(), text[: at + 1]
    if rest[:1] in ("}", "]") and before.endswith(","):
        return _at(text, len(before) - 1, f"has a comma before {rest[0]}; delete this comma")
    for explain in (_markdown, _value, _end):
        if fault := explain(text, at, error.msg):
            return fault
    return f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"


def _markdown(text: str, at: int, message: str) -> str:
    rest = text[at:].lstrip()
    place = len(text) - len(rest)
    if rest.startswith(FENCE):
        return _at(text, place, f"is a code fence, {FENCE}; delete such lines")
    if message.startswith("Extra data"):
        few = rest.splitlines()[0][:40]
        return _at(text, place, f"has {few!r} after the end of the JSON text; delete it")
    if not text[:at].strip() and re.match(r"[^\W\d_]", rest) and re.search(r"[\[{]", rest):
        few = rest.splitlines()[0][:40]
        return _at(text, place, f"begins with {few!r}; delete what stands before {{ or [")
    return ""


def _value(text: str, at: int, message: str) -> str:
    rest = text[at:]
    if rest[:1] and rest[0] in _QUOTES:
        return _at(text, at, f'has the quote {rest[0]}; JSON takes the straight double quote, "')
    if rest.startswith(("//", "/*", "#")):
        return _at(text, at, "has a comment; JSON has none, so delete it")
    if rest.startswith(("...", "…")):
        return _at(text, at, "has ... in place of values; write them all, or delete it")
    word = re.match(r"\w+", rest)
    if word and word[0] in _WORDS:
        return _at(text, at, f"has the word {word[0]}; JSON writes {_WORDS[word[0]]}")
    if message.startswith("Expecting property name") and word:
        return _at(text, at, f"has the key {word[0][:40]} without double quotes")
    if rest.startswith(",") and text[:at].rstrip().endswith(","):
        return _at(text, at, "has two commas; delete one")
    if message.startswith("Expecting ',' delimiter") and rest[:1] in ('"', "{", "["):
        return _at(text, at, f"needs a comma before {rest.splitlines()[0][:30]!r}")
    return ""


def _end(text: str, at: int, message: str) -> str:
    if message.startswith("Unterminated string"):
        return _at(text, at, "has a text that begins with a double quote and has no end")
    if message.startswith("Invalid control character"):
        return _at(text, at, r"has a line break or a tab inside quotes; write \n or \t")
    if not text.strip():
        return "it is empty"
    if not text[at:].strip():
        return _at(text, len(text.rstrip()) - 1, "is the last, but not all brackets are closed")
    return ""


def _at(text: str, place: int, problem: str) -> str:
    line = text.count("\n", 0, max(0, place)) + 1
    return f"line {line} {problem}"

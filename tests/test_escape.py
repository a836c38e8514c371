"""Foreign text at every exit: terminals, Markdown, CSV. Nothing in it controls, links or counts."""

import ast
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from so_clip import escape
from so_clip.errors import MAX_MESSAGE, InputError, RunFailed, message_of, note, say, show
from so_clip.report.formats.text import to_csv
from so_clip.system.paths import PACKAGE_DIR

RED, TITLE, CLEAR_C1, REVERSED = "\x1b[31m", "\x1b]0;x\x07", "\x9b2J", "\u202etxt.exe"
CODES = (RED, TITLE, CLEAR_C1, REVERSED, "\r", "\b", "\udc80", "\U000e0001")
FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", "＝1")
UNCHANGED = ("-1", "+5.5", "a=b", "'s-Gravenhage", "C:\\dir\\u", "", "two\nlines", 3, -1.5)
PICTURE = "![x](https://evil.example/p.png)"
# The modules that may write to a terminal: one for plain text, the others draw with rich.
WRITERS = {"errors.py", "status/watcher.py", "report/formats/screen.py", "results/screen.py"}
texts = st.text(
    st.sampled_from("=+-@'\\u001b \x1b\r\n\t\x9b\u202e\U000e0001\udc80一＝.5|") | st.characters()
)


@pytest.mark.parametrize("code", CODES)
def test_terminals_get_control_codes_as_text(code, capsys):
    shown = escape.terminal(f"a{code}b\n\tc")
    assert shown.startswith("a\\u")
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    assert json.loads(f'"{escape.line(code)}"') == code.replace("\r", " ")  # also inside JSON
    say(code)
    show(code)
    assert not {"\x1b", "\x9b", "\u202e"} & {*"".join(capsys.readouterr())}


def test_terminals_get_other_text_unchanged():
    text = "家 猫 é e\u0301 👩\u200d🔬 a\u00a0b می\u200cخواهم\n\tx"
    assert escape.terminal(text) == text
    assert escape.line("two  blanks\r\nand lines") == "two  blanks and lines"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (PICTURE, "!\\[x\\](https:\\//evil.example/p.png)"),
        ("see www.evil.example or a@b.c", "see www\\.evil.example or a\\@b.c"),
        ("<img src=x> &#106; A & B", "\\<img src=x\\> \\&#106; A & B"),
        ("a_b|c\nd", "a\\_b\\|c d"),
        (RED, "\\\\u001b\\[31m"),
    ],
)
def test_markdown_has_no_links_pictures_or_markup_of_others(text, written):
    assert escape.markdown(text) == written


@pytest.mark.parametrize("formula", FORMULAS)
def test_csv_has_no_formulas(formula):
    assert escape.csv_cell(formula) == f"'{formula}"
    written = to_csv(pd.DataFrame({formula: [formula, "b"], "difference": [-1.5, 2.0]}))
    assert written.splitlines()[0] == f"'{formula},difference"
    assert written.splitlines()[1] == f"'{formula},-1.5"


@pytest.mark.parametrize("value", UNCHANGED)
def test_csv_keeps_numbers_and_other_texts(value):
    assert escape.csv_cell(value) == value


@given(texts)
def test_csv_reads_back_what_it_wrote(text):
    cell = escape.csv_cell(text)
    assert escape.csv_text(cell) == text
    assert escape.terminal(cell) == cell


@pytest.mark.parametrize("kind", [InputError, RunFailed, ValueError])
def test_no_message_repeats_a_megabyte(kind):
    message = message_of(kind(f"seed={'9' * 2**20}: must be less. Choose another."))
    assert len(message) < MAX_MESSAGE + 100
    assert "seed=999" in message
    assert message.endswith("must be less. Choose another.")


def test_a_sweep_prints_a_remark_once_and_a_run_each_time(capsys):
    note("x")
    note.print_once(True)
    note("x")
    note("x")
    note.print_once(True)  # the next job of the sweep
    note("x")
    note.print_once(False)
    note("x")
    assert capsys.readouterr().err.count("so_clip: x") == 3


def test_only_the_exits_print():
    """Every other module calls `show`, `say` or `note`, so that nothing is printed unescaped."""
    for file in sorted(PACKAGE_DIR.rglob("*.py")):
        if file.relative_to(PACKAGE_DIR).as_posix() in WRITERS:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert call not in {"print", "sys.stdout.write", "sys.stderr.write", "typer.echo"}, file
            assert not call.endswith(".to_csv") or "formats" in file.parts, file

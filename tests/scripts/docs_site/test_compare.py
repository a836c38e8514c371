"""What may differ between the output in a page and that of a new run, and what may not."""

import pytest

from scripts.docs_site.compare import chosen, difference, shown

TABLE = """\
| shots | accuracy | memory (MiB) | training (s) |
|:------|---------:|-------------:|-------------:|
| 4     |    {} |         {} |         {} |"""

SAME = [
    ("training 19.0 s, 200 steps", "training 3.2 s, 200 steps"),
    ("peak memory 44.1 MiB", "peak memory 108 MiB"),
    ("results/runs/digits-seed1-87d344e2d391", "results/runs/digits-seed1-413372c40bc9"),
    ("adapted accuracy 81.11 %", "adapted accuracy   78.60 %"),
    ("loss 0.5312", "loss 0.5609"),
    ("61.20 ± 0.13", "61.39 ± 0.53"),
    ("at 2026-11-30 22:10:01", "at 2027-01-02 03:04:05"),
    ("2026-12-01_02-56-43-609054  2", "2027-01-02_03-04-05-600000  2"),
    (TABLE.format("81.11", "44.1", "19.0"), TABLE.format("81.20", "9044.1", "1.0")),
]
DIFFERENT = [
    ("training 19.0 s, 200 steps", "training 19.0 s, 100 steps"),
    ("adapted accuracy 81.11 %", "adapted accuracy 77.60 %"),
    ("loss 0.5312", "loss 0.7309"),
    ("digits-tiny-so", "digits-tiny-adamw"),
    ("a", "a\nb"),
    ("", "a"),
    (TABLE.format("81.11", "44.1", "19.0"), TABLE.format("61.20", "44.1", "19.0")),
]


@pytest.mark.parametrize(("page", "run"), SAME)
def test_measured_values_may_differ(page: str, run: str) -> None:
    assert difference(page, run) == ""


@pytest.mark.parametrize(("page", "run"), DIFFERENT)
def test_all_else_may_not(page: str, run: str) -> None:
    assert difference(page, run).startswith("line ")


def test_a_page_shows_no_progress_no_colors_and_no_path_of_the_home() -> None:
    bar = "10%|#\r100%|##########| 3/3\nstep 1 of 20\nstep 5 of 20, loss 1.3610, 9 s left\n"
    bar += "forecast: building the model\n"
    printed = f"\x1b[1mone\x1b[0m  \n{bar}first\rin /tmp/x/home/results\n\n"
    assert shown(printed, "/tmp/x/home") == "one\nin $HOME/results"


def test_a_comment_chooses_lines() -> None:
    text = "a 1\nb 2\na 3"
    assert chosen(text, "") == text
    assert chosen(text, "output: first 2 lines") == "a 1\nb 2"
    assert chosen(text, "output: last 1 line") == "a 3"
    assert chosen(text, "output: lines with a") == "a 1\na 3"
    with pytest.raises(ValueError, match="known are first N lines"):
        chosen(text, "output: some lines")

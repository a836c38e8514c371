"""The table of methods and families: remade, and equal to that of the page."""

import pandas as pd
import pytest

from scripts import backbone_methods as script
from so_clip.backbones.methods import method_names


def test_the_table_in_the_page_is_that_of_the_file():
    text = script.PAGE.read_text(encoding="utf-8")
    shown = text.partition(script.BEGIN)[2].partition(script.END)[0].strip()
    assert shown == script.page_table(script.TABLE)


def test_the_file_has_every_family_and_method():
    table = pd.read_csv(script.TABLE, keep_default_na=False)
    expected = [(family, method) for family, _, _ in script.FAMILIES for method in method_names()]
    assert [*zip(table["family"], table["method"], strict=True)] == expected
    assert not table["reason"].str.startswith("fails").any()


@pytest.mark.slow
def test_the_file_is_remade(tmp_path):
    page, out = tmp_path / "page.md", tmp_path / "table.csv"
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    script.main(["--out", str(out), "--page", str(page)])
    assert out.read_text() == script.TABLE.read_text()
    text = page.read_text()
    assert text.startswith(f"before\n{script.BEGIN}\n| family |")
    assert text.endswith(f"{script.END}\nafter\n")
    assert "\nold\n" not in text

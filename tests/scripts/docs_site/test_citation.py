"""The page on citing so_clip has the data of CITATION.cff."""

import yaml

from scripts.docs_site.citation import bibtex, page
from so_clip.version import __version__
from tests.helpers.command import ROOT

FILE = ROOT / "CITATION.cff"


def test_the_page_has_the_software_and_all_papers() -> None:
    text = page(FILE)
    cited = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert cited["message"] in text
    assert f"version = {{{__version__}}}" in text
    works = [cited, *cited["references"]]
    assert text.count("```bibtex\n@") == len(works)
    assert all(work["title"] in text for work in works)


def test_persons_and_groups_are_authors() -> None:
    work = {
        "type": "conference-paper",
        "title": "A Title",
        "authors": [{"family-names": "Do", "given-names": "Jo"}, {"name": "The group"}],
        "year": 2024,
        "conference": {"name": "XY 2024"},
        "url": "https://arxiv.org/abs/1234.5678",
        "identifiers": [{"type": "other", "value": "arXiv:1234.5678"}],
    }
    assert bibtex(work).splitlines() == [
        "@inproceedings{arxiv_1234.5678,",
        "  title = {{A Title}},",
        "  author = {Do, Jo and {The group}},",
        "  booktitle = {XY 2024},",
        "  year = {2024},",
        "  eprint = {1234.5678},",
        "  archiveprefix = {arXiv},",
        "  url = {https://arxiv.org/abs/1234.5678},",
        "}",
    ]

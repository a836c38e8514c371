"""Workflows: rights, pins, and the check of a tag. test_wheel.py runs more of their steps."""

import re
import shutil
from pathlib import Path

import pytest

from so_clip.version import __version__
from tests.helpers.command import ROOT
from tests.helpers.workflows import release_step, run_step, workflow

TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", ["release", "docs"])
def test_jobs_have_few_rights_a_time_limit_and_pinned_actions(name: str) -> None:
    read = workflow(name)
    assert read["permissions"] == {"contents": "read"}
    for job in read["jobs"].values():
        assert job["timeout-minutes"] <= 90
        # The job that may write runs no code of the repository.
        if "permissions" in job:
            assert "environment" in job
            assert not [step for step in job["steps"] if "run" in step or "checkout" in str(step)]
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@(v\d+|release/v\d+|[0-9a-f]{40})", step["uses"])
            elif step["run"].startswith("make "):
                assert step["run"].split()[1] in TARGETS


def test_only_a_tag_publishes_after_all_checks() -> None:
    release = workflow("release")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads the word `on` as true
    publish = release["jobs"]["publish"]
    assert {*publish["needs"]} == {*release["jobs"]} - {"publish"}
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("tag", "heading", "message"),
    [
        (f"v{__version__}", f"## [{__version__}] - 2030-01-31", None),
        ("v9.9.9", f"## [{__version__}] - 2030-01-31", f"says {__version__}, so v{__version__}"),
        (__version__, f"## [{__version__}] - 2030-01-31", f"so v{__version__}"),
        (f"v{__version__}", "## [Unreleased]", "CHANGELOG.md has no heading"),
    ],
)
def test_the_tag_must_be_the_version(
    tag: str, heading: str, message: str | None, tmp_path: Path
) -> None:
    (tmp_path / "so_clip").mkdir()
    shutil.copy(ROOT / "so_clip" / "version.py", tmp_path / "so_clip")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    step = release_step("build", "Check that the tag")
    done = run_step(step, tmp_path, GITHUB_REF_NAME=tag)
    assert done.returncode == (0 if message is None else 1), done.stderr
    assert (message or "") in done.stdout
    assert done.stdout.startswith("::error::") == (message is not None)

"""The sdist and the wheel: what is in them, and that pip installs them in an empty environment."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

from so_clip.version import __version__
from tests.helpers.clean_environment import do, new_environment
from tests.helpers.command import ROOT
from tests.helpers.workflows import release_step, run_step

pytest.importorskip("hatchling", reason="needs the build backend")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]
SDIST_ROOT = f"so_clip-{__version__}"
REPOSITORY = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "someone/so_clip"}
NOWHERE = dict.fromkeys(REPOSITORY, "")


def build(source: Path, kind: str, folder: Path, variables: dict[str, str]) -> Path:
    before = {*folder.glob("*")}
    do(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        kind,
        "-d",
        folder,
        cwd=source,
        **variables,
    )
    (built,) = {*folder.glob("*")} - before
    return built


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an sdist that was built in a repository's workflow."""
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"), REPOSITORY)


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that the release's build step makes of the unpacked sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / SDIST_ROOT
    done = run_step(release_step("build", "Build the sdist"), source, **NOWHERE)
    assert done.returncode == 0, done.stderr
    built = {path.suffix: path for path in (source / "dist").iterdir()}
    assert {*built} == {".gz", ".whl"}
    return built[".whl"]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of a new environment in which pip has installed so-clip by its name."""
    programs = new_environment(tmp_path_factory.mktemp("clean") / "environment", wheel)
    install = ("install", "--quiet", "--no-index", "--find-links", wheel.parent, "so-clip")
    do(programs / "pip", *install, cwd=tmp_path_factory.mktemp("empty"))
    return programs


def _files(root: Path, pattern: str) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob(pattern)}


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return HeaderParser().parsestr(
            archive.read(f"{SDIST_ROOT}.dist-info/METADATA").decode(encoding="utf-8")
        )


def test_the_wheel_contains_only_the_files_of_a_run(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.removeprefix("so_clip/") for name in names if name.startswith("so_clip/")}
    for folder in ("conf", "datasets"):
        expected = {f"{folder}/{name}" for name in _files(ROOT / folder, "*.yaml")}
        assert expected
        assert {name for name in inside if name.startswith(f"{folder}/")} == expected
    assert {"__main__.py", "py.typed", "assets/tiny.safetensors", "assets/tiny.json"} <= inside
    assert {f"report/assets/{name}" for name in ("page.html", "page.css", "app.js")} <= inside
    top = {name.split("/")[0].partition("-")[0] for name in names}
    assert top == {"so_clip", "hydra_plugins"}
    # Hydra finds plugins in this namespace package only; other packages put files in it too.
    plugins = [name for name in names if name.startswith("hydra_plugins")]
    assert plugins == ["hydra_plugins/so_clip_sweeper.py"]
    assert f"{SDIST_ROOT}.dist-info/licenses/LICENSE" in names
    assert not [name for name in names if name.endswith((".pyc", ".log"))]
    assert wheel.stat().st_size < 8 * 2**20


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs git")
def test_the_sdist_contains_files_of_the_repository_only(sdist):
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(sdist) as archive:
        members = {name.removeprefix(f"{SDIST_ROOT}/") for name in archive.getnames()}
    assert members - {"PKG-INFO"} <= {*tracked.splitlines()}
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "tests/test_wheel.py"} <= members


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(wheel, tmp_path):
    direct = build(ROOT, "wheel", tmp_path, REPOSITORY)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(direct) as other:
        assert one.namelist() == other.namelist()
        changed = [name for name in one.namelist() if one.read(name) != other.read(name)]
    assert changed == []


def test_the_metadata_is_complete(wheel):
    metadata = _metadata(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("so-clip", __version__)
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert metadata["Author"] == "The so_clip authors"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    urls = dict(text.split(", ") for text in metadata.get_all("Project-URL"))
    assert urls["Paper"] == "https://arxiv.org/abs/2504.12436"
    assert urls["Source"] == "https://example.org/someone/so_clip"
    assert urls["Changelog"].endswith("/CHANGELOG.md")


def test_without_a_repository_no_address_is_guessed(tmp_path):
    metadata = _metadata(build(ROOT, "wheel", tmp_path, NOWHERE))
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2504.12436"]


def test_pip_finds_no_missing_and_no_clashing_dependency(installed):
    assert do(installed / "pip", "check").strip() == "No broken requirements found."


def test_every_module_imports_without_an_extra(installed, tmp_path):
    code = """
import importlib.util, pkgutil, so_clip, hydra_plugins
assert importlib.util.find_spec("matplotlib") is None
for package in (so_clip, hydra_plugins):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # so_clip.optim.step_program needs triton, which torch has on Linux with CUDA only.
        if not module.name.endswith((".__main__", ".step_program")):
            importlib.import_module(module.name)
            print(module.name)
"""
    imported = do(installed / "python", "-c", code, cwd=tmp_path).split()
    assert {"so_clip.run", "so_clip.report.page.write", "hydra_plugins.so_clip_sweeper"} <= {
        *imported
    }


def test_the_demo_runs_in_an_empty_folder(installed, tmp_path):
    step = release_step("install", "Use both commands")
    done = run_step(step, installed.parents[1], TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"so_clip {__version__}\n")
    assert "adapted accuracy" in done.stdout
    (folder,) = tmp_path.glob("tmp.*")
    assert [path.name for path in folder.iterdir()] == ["results"]
    (run,) = (folder / "results" / "runs").glob("digits-*")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["commit"] is None
    assert provenance["command"][0].startswith(str(installed.parent))
    assert provenance["split_file"].startswith(str(installed.parent))
    assert json.loads((run / "metrics.json").read_text())["steps"] == 2


def test_the_program_is_the_installed_one(installed, tmp_path):
    code = (
        "import so_clip, so_clip.system.paths as p; "
        "print(so_clip.__file__, p.CONF_DIR, p.CARDS_DIR)"
    )
    for path in do(installed / "python", "-c", code, cwd=tmp_path).split():
        assert path.startswith(str(installed.parent))
    shown = {
        do(*program, "--help", cwd=tmp_path)
        for program in (
            (installed / "so_clip",),
            (installed / "so-clip",),
            (installed / "python", "-m", "so_clip"),
        )
    }
    assert shown == {do(sys.executable, "-m", "so_clip", "--help", cwd=ROOT)}
    version = do(installed / "python", "-m", "so_clip", "--version", cwd=tmp_path)
    assert version == do(installed / "so-clip", "--version", cwd=tmp_path)
    assert version.strip() == f"so_clip {__version__}"
    assert [*tmp_path.iterdir()] == []

"""The installed wheel works without the checkout: in a new environment, from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.helpers.command import ROOT

pytest.importorskip("hatchling", reason="needs the build backend")
pytestmark = pytest.mark.slow


def _do(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without the PYTHON* variables, which could lead to the checkout."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=clean | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    _do(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an environment with so_clip; its dependencies are borrowed."""
    folder = tmp_path_factory.mktemp("venv")
    _do(sys.executable, "-m", "venv", "--without-pip", folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    # Python searches a path in a .pth file last, and does not read the .pth files in that path, so
    # an editable install of this checkout stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    _do(*pip, "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return folder


def _files(root: Path, pattern: str) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob(pattern)}


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
    plugins = [name for name in names if name.startswith("hydra_plugins")]
    assert plugins == ["hydra_plugins/so_clip_sweeper.py"]  # a namespace, shared with others
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".pyc", ".log"))]
    assert wheel.stat().st_size < 8 * 2**20


def test_the_demo_runs_from_an_empty_folder(installed, tmp_path):
    python = installed / "bin" / "python"
    demo = ("-m", "so_clip", "experiment=demo", "schedule.max_steps=2")
    done = _do(python, *demo, cwd=tmp_path)
    assert "adapted accuracy" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    (run,) = (tmp_path / "results" / "runs").glob("[!.]*")
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["commit"] is None
    assert provenance["command"][0].startswith(str(installed))
    assert provenance["split_file"].startswith(str(installed))
    assert json.loads((run / "metrics.json").read_text())["steps"] == 2


def test_the_program_is_the_installed_one(installed, tmp_path):
    code = (
        "import so_clip, so_clip.system.paths as p; "
        "print(so_clip.__file__, p.CONF_DIR, p.CARDS_DIR)"
    )
    for path in _do(installed / "bin" / "python", "-c", code, cwd=tmp_path).stdout.split():
        assert path.startswith(str(installed))
    shown = _do(installed / "bin" / "so_clip", "--help", cwd=tmp_path).stdout
    assert shown == _do(sys.executable, "-m", "so_clip", "--help", cwd=ROOT).stdout
    assert [*tmp_path.iterdir()] == []

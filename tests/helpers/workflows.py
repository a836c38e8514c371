"""The workflows in .github/, and their shell steps, run as GitHub runs them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.clean_environment import clean_variables
from tests.helpers.command import ROOT


def workflow(name: str) -> dict[Any, Any]:
    """Return a workflow as YAML reads it: the word `on` is true."""
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def release_step(job: str, words: str) -> str:
    """Return the shell text of the release's step whose name begins with `words`."""
    steps = workflow("release")["jobs"][job]["steps"]
    (found,) = (step["run"] for step in steps if step.get("name", "").startswith(words))
    return found


def run_step(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step in a folder with bash, which stops at the first error."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text],
        cwd=folder,
        env=clean_variables() | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )

"""The recorded versions, commit and hardware of a run."""

import json
import re
import subprocess
import sys
from importlib import metadata

import torch

import so_clip
from so_clip.results.provenance import provenance, version_of
from tests.helpers.command import ROOT


def test_provenance_has_versions_commit_and_hardware():
    values = provenance("cpu", split_file_sha256="0")
    assert json.loads(json.dumps(values)) == values
    assert values["versions"]["torch"] == torch.__version__
    assert values["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"peft", "pytorch-optimizer", "open_clip_torch"} <= set(values["versions"])
    assert version_of("torch") == metadata.version("torch")
    assert version_of("no-such-distribution") is None
    assert values["hardware"]["device"] == "cpu"
    assert values["hardware"]["torch_threads"] == torch.get_num_threads()
    assert values["hardware"]["processor"]
    assert values["split_file_sha256"] == "0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", values["finished_at"])
    if (ROOT / ".git").exists():
        named = f"{values['commit'].removesuffix('-dirty')}^{{commit}}"
        found = subprocess.run(["git", "-C", ROOT, "rev-parse", named], capture_output=True)
        assert found.returncode == 0


def test_the_versions_include_so_clip():
    assert provenance("cpu")["versions"]["so-clip"] == so_clip.__version__

"""Whatever lies in folders of results: it is told by its place, and harms no run beside it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="needs the extra `report`")
pytest.importorskip("jinja2", reason="needs the extra `report`")

from so_clip.report.page.data import run_data, script_json
from so_clip.report.read import read_runs
from tests.helpers.command import Outcome, call
from tests.helpers.page_runs import write_run

METRICS = "metrics.json"


def _nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


def _pipe(path: Path) -> None:
    os.mkfifo(path)


# What stands where a run's metrics should be.
INSTEAD: dict[str, Any] = {
    "a pipe": _pipe,
    "a folder": Path.mkdir,
    "a circle of links": lambda path: path.symlink_to(path),
    "a link to what never ends": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.write_bytes(b""),
    "half of it": lambda path: path.write_text('{"dataset": "digits", "shots": 4, "accuracy_perc'),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_text(_nested(500)),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a number of many digits": lambda path: path.write_text("1" * 100_000),
    "an empty object": lambda path: path.write_text("{}"),
}
# What stands in a finished run's other files, all of which the page reads.
FILES = ("predictions.csv", "per_class.csv", "history.csv", "changed.csv", "provenance.json")
TORN = ("pipe", b"", b"step,loss,lr\n1,0.5", b"\xff\xfe\x00", b'path,label\n"a', b"[" * 9999)


def _command(*arguments: object) -> Outcome:
    done = call(*arguments)
    assert "Traceback" not in done.err
    return done


def _cells(out: Path) -> str:
    return (out / "tables" / "accuracy.csv").read_text()


def test_garbage_of_every_kind_is_told_and_harms_no_run_beside_it(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    for method, title in (("so", "SO"), ("adamw", "AdamW")):
        for seed in (1, 2):
            write_run(runs, method=method, title=title, seed=seed, accuracy_percent=70.0 + seed)
    assert _command("report", runs, "-o", out, "--tables-only").code == 0
    before = _cells(out)
    for name, place in INSTEAD.items():
        folder = write_run(runs, folder=name, seed=9)
        (folder / METRICS).unlink()
        place(folder / METRICS)
    (runs / "deep" / "in" / "circle").mkdir(parents=True)
    (runs / "deep" / "in" / "circle" / "again").symlink_to(runs)
    (runs / "a file.json").write_text("{")
    for command, options in (("report", ["-o", out]), ("table", ["-o", out / "tables"])):
        done = _command(command, runs, *options)
        assert done.code == 0
        for name in INSTEAD:
            (line,) = [each for each in done.messages if f"{runs / name / METRICS}" in each]
            assert len(line) < 600
        assert _cells(out) == before
    page = (out / "index.html").read_text(encoding="utf-8")
    assert all(f"{runs / name / METRICS}" in page for name in INSTEAD)
    done = _command("status", "--once", "--all", runs)
    assert done.code == 1
    assert done.out.startswith(f"{runs}: 15 runs: 4 done, 11 failed")


@pytest.mark.parametrize("file", FILES)
def test_torn_files_beside_whole_metrics_cost_what_they_would_show(tmp_path, file):
    runs = tmp_path / "runs"
    for at, content in enumerate(TORN):
        folder = write_run(runs, seed=at + 1, density_ratio=0.01)
        (folder / file).unlink()
        _pipe(folder / file) if content == "pipe" else (folder / file).write_bytes(content)
    done = _command("report", runs, "-o", tmp_path / "out")
    assert done.code == 0
    assert (tmp_path / "out" / "index.html").is_file()
    assert f",{len(TORN)},False," in _cells(tmp_path / "out")
    assert _command("status", "--once", runs).code == 0


def test_of_two_hundred_runs_one_is_corrupt(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "runs", test_images=10, steps=5)
    text = (whole / METRICS).read_text()
    for seed in range(2, 201):
        folder = tmp_path / "runs" / f"s{seed}"
        folder.mkdir()
        (folder / METRICS).write_text(text.replace('"seed": 1', f'"seed": {seed}'))
    bad = tmp_path / "runs" / "s77" / METRICS
    bad.write_bytes(text.encode()[:200] + b"\xc3\x28")
    done = _command("table", tmp_path / "runs", "-o", tmp_path / "out" / "tables")
    assert (done.code, len(done.messages)) == (0, 1)
    assert str(bad) in done.err
    assert ",199,False," in _cells(tmp_path / "out")
    done = _command("status", "--once", tmp_path / "runs")
    assert done.out.startswith(f"{tmp_path / 'runs'}: 200 runs: 199 done, 1 failed")


# To make an example smaller takes longer than to look at it.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -1, 10**400, 1e308, 5e-324, -0.0])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "</script>", "a\nb", "|", "=", "\x1b[31m", "experiment"]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.just("own"), inside, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(data=st.data())
def test_no_value_of_metrics_or_provenance_harms_another_run(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The other run is in the table whatever the first one says, and everything can be written."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, folder="whole", seed=2, test_images=5, steps=3, dataset="dtd")
    odd = write_run(runs, folder="odd", seed=1, test_images=5, steps=3)
    for name in (METRICS, "provenance.json"):
        content = json.loads((odd / name).read_text())
        groups = [content, *([content["settings"]] if "settings" in content else [])]
        for group in groups:
            keys = data.draw(st.lists(st.sampled_from([*sorted(group), "own", "new"]), max_size=2))
            for key in keys:
                group[key] = data.draw(values)
        (odd / name).write_text(json.dumps(content, allow_nan=True))
    done = _command("report", runs, "-o", runs / "report", "--tables-only")
    assert done.code == 0, done.err
    found = read_runs(runs)
    assert str(runs / "whole") in set(found.frame["folder"])
    assert len(found.frame) + len(found.skipped) == 2
    script_json(run_data(found)).encode()
    done = _command("status", "--once", runs)
    assert done.code == 0 or (done.code == 1 and found.skipped)  # what failed is in no table
    assert "\x1b" not in done.out

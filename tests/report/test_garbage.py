"""Damaged files in a results folder: they are named, and do not affect other runs."""

import json
from collections.abc import Callable
from pathlib import Path

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
# Replacements of a run's metrics.json.
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_text('{"dataset": "digits", "shots": 4, "accuracy_perc'),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "too deep": lambda path: path.write_text("[" * 200_000),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a number of many digits": lambda path: path.write_text("1" * 100_000),
    "an empty object": lambda path: path.write_text("{}"),
}
# The other files that the page reads, and damaged contents.
FILES = ("predictions.csv", "per_class.csv", "history.csv", "changed.csv", "provenance.json")
TORN = (b"", b"step,loss,lr\n1,0.5", b"\xff\xfe\x00", b'path,label\n"a', b"[" * 9999)


def _command(*arguments: object) -> Outcome:
    done = call(*arguments)
    assert "Traceback" not in done.err
    return done


def _cells(out: Path) -> str:
    return (out / "tables" / "accuracy.csv").read_text()


@pytest.mark.slow
def test_damaged_metrics_are_named_and_do_not_affect_other_runs(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    for method, title in (("so", "SO"), ("adamw", "AdamW")):
        write_run(runs, method=method, title=title, test_images=20, steps=5)
    assert _command("report", runs, "-o", out, "--tables-only").code == 0
    before = _cells(out)
    for name, damage in DAMAGES.items():
        folder = runs / name
        folder.mkdir()
        damage(folder / METRICS)
    (runs / "deep" / "in" / "circle").mkdir(parents=True)
    (runs / "deep" / "in" / "circle" / "again").symlink_to(runs)
    (runs / "a file.json").write_text("{")
    for command, folder in (("report", out), ("table", out / "tables")):
        done = _command(command, runs, "-o", folder)
        assert done.code == 0
        for name in DAMAGES:
            (line,) = [line for line in done.messages if f"{runs / name / METRICS}" in line]
            assert len(line) < 600
        assert _cells(out) == before
    page = (out / "index.html").read_text(encoding="utf-8")
    assert all(f"{runs / name / METRICS}" in page for name in DAMAGES)
    done = _command("status", "--once", "--all", runs)
    assert done.code == 1
    assert done.out.startswith(f"{runs}: 11 runs: 2 done, ")


@pytest.mark.slow
def test_a_run_with_other_damaged_files_stays_in_the_tables(tmp_path):
    runs = tmp_path / "runs"
    for number, file in enumerate(FILES):
        for at, content in enumerate(TORN):
            seed = number * len(TORN) + at
            folder = write_run(runs, seed=seed, density_ratio=0.01, test_images=20, steps=5)
            (folder / file).write_bytes(content)
    assert _command("report", runs, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "index.html").is_file()
    assert f",{len(FILES) * len(TORN)},False," in _cells(tmp_path / "out")
    assert _command("status", "--once", runs).code == 0


# Shrinking an example takes longer than reading it.
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
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["own", "user_data", "name"]), inside, max_size=3
        )
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=8, phases=PHASES)
@given(data=st.data())
def test_no_value_in_metrics_or_provenance_affects_another_run(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The other run is in the table, and all values can be written."""
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
    script_json(run_data(found, runs / "report")).encode()
    done = _command("status", "--once", runs)
    assert done.code == 0 or (done.code == 1 and found.skipped)  # a failed run is in no table
    assert "\x1b" not in done.out

"""Plots of made runs: which are drawn, with which numbers, and where labels are."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")

from so_clip.report.plots import labels, style
from so_clip.report.plots import write as plots
from so_clip.report.plots.accuracy import accuracy_vs_memory, accuracy_vs_shots
from so_clip.report.plots.drawing import write as write_drawing
from so_clip.report.plots.kappa_t import kappa_t
from so_clip.report.plots.support import place_of, support
from so_clip.report.plots.svg import inline
from so_clip.report.plots.training import accuracy_curves, loss_curves, smoothed
from so_clip.report.read import read_runs
from so_clip.report.tables import AVERAGE, make_tables
from so_clip.results.run_files import CHANGED_COLUMNS
from tests.helpers.page_runs import write_csv, write_run


def _frame(root: Path) -> pd.DataFrame:
    return read_runs(root).frame


def _drawn(draw, root: Path):
    runs = _frame(root)
    return list(draw(runs, style.choose_lines(runs)))


def test_accuracy_against_shots_has_every_dataset_and_the_tables_average(tmp_path):
    for dataset, base in (("dtd", 50.0), ("eurosat", 70.0)):
        for shots in (1, 4):
            for seed in (1, 2):
                accuracy = base + shots + seed
                write_run(
                    tmp_path, dataset=dataset, shots=shots, seed=seed, accuracy_percent=accuracy
                )
    # A third seed on one dataset counts there; the average then has no deviation.
    write_run(tmp_path, dataset="dtd", shots=4, seed=3, accuracy_percent=99.0)
    (drawing,) = _drawn(accuracy_vs_shots, tmp_path)
    cells = drawing.numbers.set_index(["dataset", "shots"])
    assert cells.loc[("eurosat", 4), "mean"] == pytest.approx(75.5)
    assert cells.loc[("eurosat", 4), "std"] == pytest.approx(0.5**0.5)
    assert cells.loc[("dtd", 4), "runs"] == 3
    runs = read_runs(tmp_path)
    (table,) = (table for table in make_tables(runs) if table.measure.name == "accuracy")
    in_tables = {block.shots: block.rows[0].cells[AVERAGE] for block in table.blocks}
    for shots in (1, 4):
        assert cells.loc[("Average", shots), "mean"] == pytest.approx(in_tables[shots].mean)
    assert cells.loc[("Average", 4), "mean"] == pytest.approx(((55 + 56 + 99) / 3 + 75.5) / 2)
    assert math.isnan(cells.loc[("Average", 4), "std"])
    assert cells.loc[("Average", 1), "std"] == pytest.approx(0.5**0.5)
    assert [axis.get_title() for axis in drawing.figure.axes] == ["Average", "dtd", "eurosat"]
    assert "1 more" not in drawing.caption


def test_the_average_is_missing_if_a_dataset_has_no_run(tmp_path):
    for shots in (1, 4):
        write_run(tmp_path, dataset="dtd", shots=shots)
    write_run(tmp_path, dataset="eurosat", shots=1)
    (drawing,) = _drawn(accuracy_vs_shots, tmp_path)
    average = drawing.numbers[drawing.numbers["dataset"] == "Average"]
    assert average["shots"].tolist() == [1]


def test_zero_shot_comes_from_its_own_run_or_from_other_runs(tmp_path):
    for shots in (1, 4):
        write_run(tmp_path / "a", shots=shots)
    (drawing,) = _drawn(accuracy_vs_shots, tmp_path / "a")
    assert _dashed(drawing) == [61.0]
    write_run(tmp_path / "a", method="zero_shot", title="Zero-shot CLIP", accuracy_percent=58.5)
    (drawing,) = _drawn(accuracy_vs_shots, tmp_path / "a")
    assert _dashed(drawing) == [58.5]


def _dashed(drawing) -> list[float]:
    (axis,) = drawing.figure.axes
    return [line.get_ydata()[0] for line in axis.get_lines() if line.get_linestyle() == "--"]


def test_base_to_new_runs_are_not_in_accuracy_plots(tmp_path):
    for shots in (1, 4):
        write_run(tmp_path, shots=shots)
    runs = _frame(tmp_path)
    runs["protocol"] = "base_to_new"
    for draw in (accuracy_vs_shots, loss_curves, accuracy_curves):
        assert list(draw(runs, style.choose_lines(runs))) == []


def test_runs_with_nothing_to_plot_make_no_file(tmp_path):
    folder = write_run(tmp_path / "runs")
    for file in ("history.csv", "curve.csv", "changed.csv"):
        (folder / file).unlink()
    assert plots.write(_frame(tmp_path / "runs"), tmp_path / "out") == ([], [])
    assert not (tmp_path / "out").exists()


def test_every_line_has_its_own_colour_and_so_comes_first(tmp_path):
    for index in range(style.MAX_LINES + 3):
        for shots in (1, 4):
            name = f"method{index}"
            write_run(tmp_path, method=name, title=name, shots=shots, accuracy_percent=90.0 - index)
    for shots in (1, 4):
        write_run(tmp_path, shots=shots, accuracy_percent=30.0)
    lines = style.choose_lines(_frame(tmp_path))
    assert [line.title for line in lines[:3]] == ["SO", "method0", "method1"]
    assert len({line.colour for line in lines}) == len(lines) == style.MAX_LINES
    assert len({line.marker for line in lines}) == len(lines)
    (drawing,) = _drawn(accuracy_vs_shots, tmp_path)
    assert "4 more methods or settings are only in the tables." in drawing.caption


def test_the_variant_with_the_most_runs_is_drawn(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, seed=seed, accuracy_percent=70.0, density_ratio=0.1)
    write_run(tmp_path, accuracy_percent=95.0, density_ratio=0.2)
    (line,) = style.choose_lines(_frame(tmp_path))
    assert line.variant == "optimizer.density_ratio=0.1"


def test_a_map_of_kappa_and_t_allows_different_rates_by_cell(tmp_path):
    for kappa in (5e-4, 5e-2):
        for interval in (0, 10):
            for seed in (1, 2):
                if (kappa, interval) != (5e-2, 0):
                    write_run(
                        tmp_path,
                        seed=seed,
                        density_ratio=kappa,
                        T=interval,
                        lr=kappa,
                        accuracy_percent=70.0 + interval + seed,
                    )
    write_run(tmp_path, method="lora", title="LoRA")
    (drawing,) = _drawn(kappa_t, tmp_path)
    assert drawing.numbers[["density_ratio", "T", "mean", "runs"]].values.tolist() == [
        [5e-4, 0, 71.5, 2],
        [5e-4, 10, 81.5, 2],
        [5e-2, 10, 81.5, 2],
    ]
    assert "Learning rates differ between cells" in drawing.caption
    texts = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert texts == ["71.5\n±0.7", "81.5\n±0.7", "81.5\n±0.7"]


def test_several_rates_in_one_cell_make_several_maps(tmp_path):
    for lr, gain in ((1e-3, 0.0), (2e-3, 5.0)):
        for kappa in (5e-4, 5e-2):
            for interval in (0, 10):
                accuracy = 70.0 + gain + interval
                write_run(
                    tmp_path, density_ratio=kappa, T=interval, lr=lr, accuracy_percent=accuracy
                )
    low, high = _drawn(kappa_t, tmp_path)
    assert low.numbers["mean"].tolist() == [70.0, 80.0] * 2
    assert high.numbers["mean"].tolist() == [75.0, 85.0] * 2
    assert set(low.numbers["runs"]) == {1}
    assert "optimizer.lr=0.001" in low.choice
    assert "other rates have their own maps" in low.caption


def test_a_single_kappa_makes_no_map(tmp_path):
    for interval in (0, 10):
        write_run(tmp_path, density_ratio=5e-4, T=interval)
    assert _drawn(kappa_t, tmp_path) == []


def test_accuracy_against_memory_has_one_point_per_method_and_the_front(tmp_path):
    for name, accuracy, memory in (("a", 80.0, 40.0), ("b", 70.0, 50.0), ("c", 90.0, 60.0)):
        for seed in (1, 2):
            write_run(
                tmp_path,
                method=name,
                title=name,
                seed=seed,
                accuracy_percent=accuracy + seed,
                peak_memory_mib=memory,
            )
    (drawing,) = _drawn(accuracy_vs_memory, tmp_path)
    assert drawing.numbers["accuracy_percent"].tolist() == [81.5, 71.5, 91.5]
    assert drawing.numbers["accuracy_std"].tolist() == pytest.approx([0.5**0.5] * 3)
    (axis,) = drawing.figure.axes
    assert axis.get_xscale() == "log"
    front = axis.get_lines()[0]
    assert front.get_ydata().tolist() == [81.5, 91.5]


def test_a_dataset_with_one_method_is_left_out_of_the_memory_plot(tmp_path):
    for name in ("a", "b", "c"):
        write_run(tmp_path, method=name, title=name)
    write_run(tmp_path, method="a", title="a", dataset="dtd")
    (drawing,) = _drawn(accuracy_vs_memory, tmp_path)
    assert drawing.numbers["method"].tolist() == ["a", "b", "c"]
    assert "datasets" not in drawing.caption


def test_no_label_covers_another_label_or_a_point():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5))
    axis = figure.subplots()
    points = [(1 + 0.02 * (n % 5), 1 + 0.02 * (n // 5)) for n in range(25)]
    axis.set(xlim=(0, 2), ylim=(0, 2))
    texts = [axis.text(x, y, f"method number {n}", fontsize=7) for n, (x, y) in enumerate(points)]
    labels.place(axis, texts, points)
    boxes = [text.get_window_extent() for text in texts]
    pixels = axis.transData.transform(points)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(box.contains(*pixel) for pixel in pixels)
        assert axis.bbox.containsx(box.x0)
        assert axis.bbox.containsx(box.x1)


def test_a_label_without_a_free_place_stays_in_the_panel():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    axis = figure.subplots()
    points = [(1.9, 1.0 + 0.001 * n) for n in range(40)]
    axis.set(xlim=(0, 2), ylim=(0, 2))
    texts = [axis.text(x, y, f"a long name of method {n}", fontsize=7) for n, (x, y) in
             enumerate(points)]  # fmt: skip
    labels.place(axis, texts, points)
    for text in texts:
        box = text.get_window_extent()
        assert axis.bbox.x0 <= box.x0 < box.x1 <= axis.bbox.x1


def test_loss_curves_are_moving_averages_and_skip_damaged_files(tmp_path):
    folder = write_run(tmp_path, steps=100)
    damaged = write_run(tmp_path, method="lora", title="LoRA", steps=100)
    (damaged / "history.csv").write_text('step,loss\n1,"half a fi')
    (drawing,) = _drawn(loss_curves, tmp_path)
    assert set(drawing.numbers["method"]) == {"SO"}
    losses = pd.read_csv(folder / "history.csv")["loss"]
    at_50 = drawing.numbers.set_index("step").loc[50, "mean"]
    assert at_50 == pytest.approx(losses[47:52].mean())
    (drawing,) = _drawn(accuracy_curves, tmp_path)
    assert set(drawing.numbers["method"]) == {"SO", "LoRA"}


def test_a_short_history_is_not_smoothed():
    values = pd.Series([3.0, 2.0, 1.0])
    assert smoothed(values).tolist() == [3.0, 2.0, 1.0]


def test_support_is_the_fraction_of_changed_weights_over_all_runs(tmp_path):
    for seed, changed in ((1, 10), (2, 30)):
        folder = write_run(tmp_path, seed=seed, density_ratio=0.01, T=10)
        rows = [
            ("visual.transformer.resblocks.0.mlp.c_fc.weight", 100, changed),
            ("transformer.resblocks.11.mlp.c_fc.weight", 100, 50),
            ("logit_scale", 1, 1),
        ]
        write_csv(folder / "changed.csv", ("tensor", "parameters", "changed"), rows)
    (drawing,) = _drawn(support, tmp_path)
    cells = drawing.numbers.set_index(["tower", "layer"])["changed_percent"]
    assert cells.to_dict() == {("vision", 0): 20.0, ("text", 11): 50.0}
    assert len(drawing.figure.axes) == 2


def test_recorded_places_are_drawn_by_block_and_role(tmp_path):
    folder = write_run(tmp_path, density_ratio=0.01, T=10)
    rows = [
        ("visual.trunk.stages.1.blocks.0.mlp.fc1.weight", 100, 10, "vision", 3, "mlp_in"),
        ("visual.trunk.stages.1.blocks.0.mlp.fc1_x.weight", 100, 20, "vision", 3, "mlp_in"),
        ("visual.trunk.stages.1.downsample.1.weight", 100, 30, "vision", None, "convolution"),
        ("text.blocks.0.attn.qkv.weight", 100, 40, "text", 0, "attention_in"),
        ("head.weight", 100, 50, "", None, ""),
    ]
    write_csv(folder / "changed.csv", CHANGED_COLUMNS, rows)
    (drawing,) = _drawn(support, tmp_path)
    cells = drawing.numbers.set_index(["tower", "kind", "layer"])["changed_percent"]
    assert cells.to_dict() == {("vision", "mlp_in", 3): 15.0, ("text", "attention_in", 0): 40.0}


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("visual.transformer.resblocks.3.attn.in_proj.weight", ("vision", "attention_in", 3)),
        ("transformer.resblocks.11.mlp.c_proj.weight", ("text", "mlp_out", 11)),
        ("visual.trunk.blocks.0.mlp.fc1.weight", ("vision", "mlp.fc1", 0)),
        ("logit_scale", None),
    ],
)
def test_a_tensors_name_in_an_old_run_gives_its_place(tensor, place):
    assert place_of(tensor) == place


@pytest.mark.slow
def test_the_same_runs_give_the_same_files_and_svg_fit_for_a_page(tmp_path):
    for shots in (1, 4):
        for name in ("so", "a<b>&$x$"):
            write_run(
                tmp_path / "runs", method=name, title=name, shots=shots, folder=f"{shots}{name[:2]}"
            )
    runs = _frame(tmp_path / "runs")
    first, _ = plots.write(runs, tmp_path / "one")
    plots.write(runs, tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one" / "plots").iterdir())
    assert {"accuracy_vs_shots.svg", "accuracy_vs_shots.png", "accuracy_vs_shots.csv"} < set(files)
    for name in files:
        content = (tmp_path / "one" / "plots" / name).read_bytes()
        assert content == (tmp_path / "two" / "plots" / name).read_bytes()
        if name.endswith(".svg"):
            ElementTree.fromstring(content)
    plot = next(plot for plot in first if plot.name == "accuracy_vs_shots")
    root = ElementTree.fromstring(inline(plot.svg, plot.name, 'so "and" <others>'))
    assert root.get("aria-label") == 'so "and" <others>'
    assert "a<b>&$x$" in "".join(root.itertext())
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("accuracy_vs_shots-") for name in ids)
    assert "var(--plot-blue)" in inline(plot.svg, plot.name, "")


def test_only_coordinates_are_shortened_and_recoloured_in_an_svg():
    svg = (
        '<svg viewBox="0 0 400 300"><path d="M 1.23456 7.891" style="fill: #0072b2"/>'
        "<text>kappa=0.005, #0072b2, 12.3456 %</text></svg>"
    )
    shortened = inline(svg, "p", "")
    assert "<text>kappa=0.005, #0072b2, 12.3456 %</text>" in shortened
    assert '<path d="M 1.23 7.89" style="fill: var(--plot-blue)"/>' in shortened


def test_the_numbers_in_an_svg_are_those_of_the_csv(tmp_path):
    for kappa in (5e-3, 5e-2):
        for interval in (0, 10):
            write_run(tmp_path, density_ratio=kappa, T=interval, accuracy_percent=70.125)
    (drawing,) = _drawn(kappa_t, tmp_path)
    plot = write_drawing(drawing, tmp_path / "out")
    kappas = pd.read_csv(tmp_path / "out" / f"{plot.name}.csv")["density_ratio"]
    root = ElementTree.fromstring(inline(plot.svg, plot.name, ""))
    texts = {
        (element.text or "").strip() for element in root.iter() if element.tag.endswith("text")
    }
    assert {f"{kappa:g}" for kappa in kappas} == {"0.005", "0.05"} <= texts

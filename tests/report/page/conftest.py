"""A page of many runs, for the tests in a browser."""

from pathlib import Path

import pytest

from tests.helpers.page_runs import DIGITS, NASTY, write_run

METHODS = (("so", "SO", 80.0), ("adamw", "AdamW (dense)", 70.0), ("clip_lora", "CLIP-LoRA", 85.0))


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 34 runs: three methods, numbers of shots and seeds, and some unusual ones."""
    pytest.importorskip("matplotlib", reason="needs the extra `report`")
    pytest.importorskip("jinja2", reason="needs the extra `report`")
    from so_clip.report.page import write as page
    from so_clip.report.page.data import frame_data
    from so_clip.report.plots import write as plots
    from so_clip.report.read import read_runs
    from so_clip.report.tables import make_tables

    root = tmp_path_factory.mktemp("runs")
    for method, title, accuracy in METHODS:
        for shots in (1, 4, 16):
            for seed in (1, 2, 3):
                write_run(root, method=method, title=title, shots=shots, seed=seed,
                          accuracy_percent=accuracy + shots / 4 + seed)  # fmt: skip
    write_run(root, method="zero_shot", title="Zero-shot CLIP", accuracy_percent=61.0)
    for kappa in (5e-4, 5e-2):
        for interval in (0, 10):
            write_run(root, density_ratio=kappa, T=interval, method="so_k", title="SO, κ")
    names = [f"breed {n}" for n in range(37)]
    write_run(root, dataset="oxford_pets", class_names=names, test_images=500)
    write_run(root, method="odd", title=NASTY, class_names=[NASTY, *DIGITS[1:]], folder="o %d#d")
    runs = read_runs(root)
    out = tmp_path_factory.mktemp("out")
    drawn, _ = plots.write(runs.frame, out)
    return page.write(
        runs, make_tables(runs), out, drawn, notes=["Left out: some folder."],
        frames=[frame_data("significance", "Significance", "A p below 0.05 says much.",
                           runs.frame[["method_title", "seed", "accuracy_percent"]])],
    )  # fmt: skip

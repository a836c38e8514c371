"""`python -m so_clip rescore`: other scores of finished runs, from their kept logits."""

from pathlib import Path
from typing import Annotated

import typer

from so_clip.checks import device_name, path
from so_clip.cli.arguments import OUT
from so_clip.errors import InputError, say, show

HELP = """Score finished runs again from their kept logits, without the model.

RUNS are run folders, or folders of runs. The tables have, before and after temperature scaling:
top-1, top-5, accuracy averaged over classes, negative log-likelihood, Brier score and expected
calibration error with 10, 15 and 20 bins. The temperature is fitted on the drawn validation images
of each run. Runs that differ only in the seed vote: majority of predictions, and mean of
probabilities. A curve mixes the logits of the zero-shot and the adapted model.

\b
  python -m so_clip rescore results/runs -o rescored
  python -m so_clip rescore results/runs/RUN --wise-ft 0,0.25,0.5,0.75,1

--wise-ft adds curves that mix weights, for runs whose saved adapter changes CLIP's own weights.
They need the model and the test images, which are encoded once for each weight between 0 and 1.

\b
The folder of -o gets:
  scores.csv, votes.csv, curves.csv  one line for each score, vote and point of a curve
  rescore.json                       all of them in one file
  curves.svg, curves.png             the curves; needs pip install 'so-clip[report]'

Exit codes: 0 done, also if some runs in a folder of runs are left out (stderr names them); 2 a run
cannot be used, or the folder cannot be written."""


def main(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS",
            help="Run folders, or folders of runs.",
            parser=lambda folder: path("RUNS", folder),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            help="Folder for CSV, JSON and the plot. Default: none.",
            parser=lambda folder: path("-o", folder),
        ),
    ] = None,
    wise_ft: Annotated[
        str | None,
        typer.Option(
            "--wise-ft",
            metavar="WEIGHTS",
            help="Shares of the adapted weights, such as 0,0.5,1, for curves in weight space.",
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --wise-ft: the folder of all datasets. Default: the one of the run.",
            parser=lambda folder: path("--data-root", folder),
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="With --wise-ft: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
) -> None:
    """Print the tables; see HELP."""
    from so_clip.rescore.kept_runs import find_runs
    from so_clip.rescore.screen import show_tables
    from so_clip.rescore.tables import make_tables
    from so_clip.rescore.weight_space import WeightSpace, parsed_weights
    from so_clip.rescore.write import write_tables
    from so_clip.system import atomic

    weight_space = None
    if wise_ft is not None:
        weight_space = WeightSpace(parsed_weights(wise_ft), data_root, device_name(device))
    elif data_root is not None or device != "auto":
        raise InputError("--data-root and --device go with --wise-ft. Leave them out, or add it.")
    left_out: list[str] = []
    tables = make_tables([*find_runs(runs, left_out)], left_out, weight_space)
    files, remarks = list[str](), list[str]()
    if out is not None:
        with atomic.output_option(OUT):
            files, remarks = write_tables(tables, out)
    show_tables(tables)
    if files:
        show(f"{', '.join(files)} in {out}")
    for remark in (*remarks, *(f"left out: {reason}" for reason in tables.left_out)):
        say(remark)

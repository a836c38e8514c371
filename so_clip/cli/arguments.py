"""Arguments and flags that several commands share, declared for typer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from so_clip.checks import path
from so_clip.predict.classes import CLASSES, CLASSES_FILE

Words = Annotated[list[str] | None, typer.Argument(metavar="OPTION=VALUE", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ResultsDir = Annotated[
    Path,
    typer.Argument(
        metavar="RESULTS_DIR",
        help="The folder that holds the run folders.",
        parser=lambda folder: path("RESULTS_DIR", folder),
    ),
]
RunOrFile = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_FILE",
        show_default=False,
        parser=lambda place: path("RUN_OR_FILE", place),
    ),
]
OtherClasses = Annotated[
    str | None,
    typer.Option(CLASSES, metavar="A,B,C", help="Other classes, if the method allows it."),
]
OtherClassesFile = Annotated[
    Path | None,
    typer.Option(
        CLASSES_FILE,
        metavar="FILE",
        help="Other classes, one name on each line.",
        parser=lambda file: path(CLASSES_FILE, file),
    ),
]
BaseCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="A local file with the base's weights.",
        parser=lambda file: path("--checkpoint", file),
    ),
]
# The option in messages about a folder that cannot be written.
OUT = "-o FOLDER"


def out_option(content: str, name: str) -> Any:
    """Declare `-o`, the folder for `content`; the default is the folder `name` in RESULTS_DIR."""
    text = f"Folder for {content}. Default: RESULTS_DIR/{name}."
    return typer.Option(
        "-o", "--out", metavar="FOLDER", help=text, parser=lambda folder: path("-o", folder)
    )

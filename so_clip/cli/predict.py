"""`python -m so_clip predict`: classes of any images, with the adapter of a run."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from os.path import samestat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from so_clip.checks import path
from so_clip.cli.arguments import BaseCheckpoint, OtherClasses, OtherClassesFile, RunOrFile
from so_clip.data.user.folder import SUFFIXES
from so_clip.errors import InputError, note, say, show
from so_clip.predict.classes import other_classes
from so_clip.predict.formats import Format, TextForm, default_format, text_form
from so_clip.predict.gather import gather, paths_from
from so_clip.results.run_files import ADAPTER_FILE
from so_clip.system import atomic
from so_clip.system.safe_open import MAX_LIST_BYTES

if TYPE_CHECKING:
    from so_clip.adapters.about import About
    from so_clip.predict.predictions import Predictor

HELP = """Classify images with the adapter of a run: the best classes of each, with confidences.

\b
  python -m so_clip predict results/runs/NAME photos/
  python -m so_clip predict adapter.safetensors a.jpg 'photos/**/*.png' --top 1 -o classes.csv
  find photos -name '*.jpg' -print0 | python -m so_clip predict results/runs/NAME - -0

\b
RUN_OR_FILE is the folder of a finished run, or an adapter file. IMAGES are:
  files        with any name. Put -- before names that begin with a dash
  folders      all images below them; hidden files are skipped
  patterns     *, ?, [...], and ** for any folders
  -            reads paths from stdin, one on each line

An image that cannot be read is named on stderr and skipped.

Confidences are softmax(logits / temperature). The run has fitted the temperature on its drawn
validation images. Without it, confidences are not calibrated, and the command says so.

Exit codes: 0 at least one image is classified, 2 none."""
PRECISIONS = Literal["auto", "fp32", "bf16", "fp16"]
OUT = "-o FILE"
STDIN = "-"


def main(
    run: RunOrFile,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGES", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes per image.")] = 5,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Default: a table on a terminal, else CSV; with -o by the file's suffix.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Write to a file instead.",
            parser=lambda file: path("-o", file),
        ),
    ] = None,
    classes: OtherClasses = None,
    classes_file: OtherClassesFile = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="With -: paths end with a NUL byte.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links that lead out of a folder.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Images per forward pass. Default: as in the run's evaluation.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto | cpu | cuda | cuda:N | mps.")
    ] = "auto",
    precision: Annotated[
        PRECISIONS | None,
        typer.Option("--precision", help="Of the image tower. Default: as in the run."),
    ] = None,
    checkpoint: BaseCheckpoint = None,
) -> None:
    """Classify images; see HELP."""
    target = None if out is None else _target(out)
    names = other_classes(classes, classes_file)
    chosen = form or default_format(target, sys.stdout.isatty())
    paths = _paths(images or [], null, follow_links)
    if target is not None:
        _check_replaces_no_input(target, run, [run, checkpoint, classes_file, *paths])

    # torch takes seconds to import, so most bad input is refused before.
    from so_clip.adapters import open_saved, restore
    from so_clip.predict.predictions import Predictor, evaluation_batch_size

    adapter, folder = open_saved(run)
    restored = restore(
        adapter,
        device=device,
        precision=precision,
        checkpoint=checkpoint,
        folder=folder,
        class_names=names,
    )
    _note_calibration(restored.about, restored.class_names)
    predictor = Predictor(
        restored.classifier,
        restored.class_names,
        restored.about.temperature,
        restored.precision,
        top=top,
        batch_size=batch_size or evaluation_batch_size(restored.about.settings),
    )
    text = text_form(chosen, paths, restored.class_names)
    with _writing(target) as write:
        unread = _classify(predictor, paths, text, write)
    problem = f", {unread} could not be read" if unread else ""
    classified = len(paths) - unread
    say(f"{classified} {'image is' if classified == 1 else 'images are'} classified{problem}.")


def _paths(arguments: Sequence[str], null: bool, follow_links: bool) -> list[str]:
    """Return the images; print what is skipped; InputError if no image is left."""
    listed: list[str] = []
    if STDIN in arguments:
        listed = paths_from(sys.stdin.buffer.read(MAX_LIST_BYTES + 1) if sys.stdin else b"", null)
    elif null:
        raise InputError(f"-0: goes with {STDIN}, which reads paths from stdin. Add {STDIN}.")
    given = [argument for argument in arguments if argument != STDIN]
    for argument in given:
        if (Path(argument) / ADAPTER_FILE).exists():
            raise InputError(
                f"{argument}: is the folder of a run, and images are expected here. If a pattern "
                "such as results/runs/photos-* fits several runs, name one of them."
            )
    found = gather(given, listed, follow_links)
    for message in (*found.problems, *found.notes):
        say(message)
    if not found.paths:
        raise InputError(
            "IMAGES: there is no image to classify. Give files, folders with images, a pattern "
            f"such as 'photos/*.jpg', or {STDIN} to read paths from stdin."
        )
    return found.paths


def _target(file: Path) -> Path:
    """Return the output file; InputError if it cannot be one."""
    if not file.parent.is_dir():
        raise InputError(f"-o {file}: the folder {file.parent} does not exist. Make it first.")
    if file.exists() and not file.is_file():
        raise InputError(f"-o {file}: is not a plain file. Choose another name.")
    if file.suffix.lower() in SUFFIXES:
        raise InputError(f"-o {file}: predictions are text. Choose another name, such as a.csv.")
    return file


def _check_replaces_no_input(file: Path, run: Path, inputs: Iterable[Path | str | None]) -> None:
    """Raise InputError if the output file is one that is read, or one of the run's own files."""
    if not file.exists():
        return
    status = file.stat()
    for given in inputs:
        # os.path's test is False below a folder that may not be entered.
        if given is not None and os.path.exists(given) and samestat(status, os.stat(given)):  # noqa: PTH110, PTH116
            raise InputError(f"-o {file}: this file is read. Choose another name, such as a.csv.")
    if os.path.isdir(run) and file.resolve().parent == run.resolve():  # noqa: PTH112
        raise InputError(f"-o {file}: this file belongs to the run. Choose another folder.")


def _note_calibration(about: "About", class_names: Sequence[str]) -> None:
    if about.temperature is None:
        note(
            "the adapter has no temperature, so confidences are not calibrated: they are "
            "softmax(logits)."
        )
    elif tuple(class_names) != about.class_names:
        note("the temperature was fitted on the run's classes, not on these classes.")


def _classify(
    predictor: "Predictor", paths: Sequence[str], text: TextForm, write: Callable[[str], None]
) -> int:
    """Write the predictions batch by batch; return the number of images that cannot be read.

    Raises:
        InputError: no image can be read.
    """
    unread = 0

    def name_unread(_: int, error: InputError) -> None:
        nonlocal unread
        unread += 1
        with _without_bar():
            say(str(error))

    header = text.header
    with closing(predictor.batches(paths, name_unread, progress=True)) as batches:
        for batch in batches:
            if batch:
                with _without_bar():
                    write(header + text.lines(batch))
                header = ""
    if unread == len(paths):
        raise InputError(f"IMAGES: none of the {unread} images can be read.")
    return unread


@contextmanager
def _writing(target: Path | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes text to stdout, or to a file that appears whole at the end."""
    if target is None:
        yield lambda text: show(text.removesuffix("\n"))
        return
    with atomic.output_option(OUT), atomic.writing(target) as file:
        yield lambda text: _write(file, text)


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode("utf-8", "backslashreplace"))


def _without_bar() -> AbstractContextManager[Any]:
    """Hide the progress bar while other text is printed."""
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stderr)

"""`python -m so_clip export`: an adapted model as files of another library."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from so_clip.checks import path
from so_clip.cli.arguments import BaseCheckpoint, OtherClasses, OtherClassesFile, RunOrFile
from so_clip.errors import note, show
from so_clip.predict.classes import other_classes

HELP = """Export the adapter of a run as files of another library, with a model card beside them.

\b
  python -m so_clip export results/runs/NAME --to open_clip export/model.safetensors
  python -m so_clip export results/runs/NAME --to transformers export/
  python -m so_clip export adapter.safetensors --to peft export/ --push OWNER/NAME

\b
RUN_OR_FILE is the folder of a finished run, or an adapter file. --to is:
  open_clip     a checkpoint, .safetensors, .pt, .pth or .bin
  openai        a checkpoint in OpenAI's layout, .pt or .pth; the model must have QuickGELU
  transformers  a folder with a CLIPModel or SiglipModel and its processor
  peft          a folder with a LoRA, or another adapter that peft has

The export also writes README.md (a model card), classifier.safetensors (a weight and a bias for
each class) and classes.json (names and prompts). docs/how_to/export.md explains them.

--push uploads the files to a model repository of the Hugging Face hub. HF_TOKEN and HF_ENDPOINT
count.

Exit codes: 0 done, 2 the model cannot be exported, or a file exists, or the hub refuses it."""


def main(
    run: RunOrFile,
    place: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            show_default=False,
            parser=lambda place: path("FILE_OR_FOLDER", place),
        ),
    ],
    to: Annotated[
        Literal["open_clip", "openai", "transformers", "peft"],
        typer.Option("--to", help="The library.", show_default=False),
    ],
    repository: Annotated[
        str | None,
        typer.Option("--push", metavar="REPO", help="A repository to upload the files to."),
    ] = None,
    classes: OtherClasses = None,
    classes_file: OtherClassesFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    checkpoint: BaseCheckpoint = None,
) -> None:
    """Export an adapter; see HELP."""
    names = other_classes(classes, classes_file)

    # torch takes seconds to import.
    from so_clip.adapters import open_saved, restore
    from so_clip.export.files import check_free
    from so_clip.export.push import check_repository
    from so_clip.export.targets import split_place
    from so_clip.export.write import COMMON_FILES, make_export, push_export, write_export
    from so_clip.system import atomic

    folder, file = split_place(place, to)
    check_free(folder, [*([file] if file else []), *COMMON_FILES], force)
    adapter, run_folder = open_saved(run)
    hub = None if repository is None else check_repository(repository)
    restored = restore(
        adapter,
        device="cpu",
        precision="fp32",
        checkpoint=checkpoint,
        folder=run_folder,
        class_names=names,
    )
    export = make_export(adapter, restored, to, file, run_folder)
    with atomic.output_option(f"--to {to} FOLDER"):
        files = write_export(export, folder, force)
    show("\n".join(str(folder / name) for name in files))
    note(f"{folder / 'README.md'} has code that loads these files and classifies an image.")
    if export.needs_classifier:
        note(
            f"{adapter.about.method} changes the classifier itself: classify with "
            "classifier.safetensors, not with the prompts."
        )
    if hub is not None:
        show(push_export(export, folder, hub))

"""`python -m so_clip backbones`: the models of open_clip, and one of them in detail."""

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from so_clip.cli.arguments import AsJson
from so_clip.errors import InputError, nearest, show, show_progress

if TYPE_CHECKING:
    from so_clip.backbones.models import Model, TowerSize
    from so_clip.backbones.role_table import ModelMap, RoleRow, TowerMap
    from so_clip.clip.pixels import Preprocessing

HELP = """List the models that open_clip builds, or show one of them in detail.

Without NAME, or with a pattern: image and text tower, sizes, number of published weights, the group
in conf/backbone, and the methods that apply. No weights are downloaded.

With NAME, an architecture, a group, hf-hub:ORG/NAME, local-dir:PATH or timm:NAME: the roles of all
parameters (the values of adapter.roles), the published weights with the pixels that they were
trained on, and the methods that apply. For the others, the reason.

\b
  python -m so_clip backbones 'ViT-B*'
  python -m so_clip backbones --matching siglip
  python -m so_clip backbones siglip_b16
  python -m so_clip backbones ViT-B-16-quickgelu --json

A method applies if it opens its parameters on a model without weights, and its optimizer takes
them. The list examines one model of each structure. With NAME, the model itself is examined."""
_WIDTH = 100
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="An architecture, a group, or a pattern such as 'ViT-B*'.",
            show_default=False,
        ),
    ] = None,
    matching: Annotated[
        str | None,
        typer.Option("--matching", metavar="TEXT", help="List models with this text in a name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models, or show one; see HELP."""
    if name is not None and matching is not None:
        raise InputError(f"--matching {matching}: is for the list, without NAME. Leave one out.")
    if name is not None and not any(mark in name for mark in "*?["):
        _show_one(name, as_json)
    else:
        _show_list(name, matching, as_json)


def _show_one(name: str, as_json: bool) -> None:
    from so_clip.clip.loading.architecture_names import check_architecture
    from so_clip.config.compose import choices

    groups = [file.stem for file in choices("backbone")]
    if name not in groups:
        _check(name, groups, check_architecture)
    with _shown_progress(f"backbones: examining {name}") as report:
        # torch takes seconds to import, so an unknown name is refused before.
        from so_clip.backbones.role_table import architecture_of, model_map

        found = model_map(architecture_of(name), report)
    show(json.dumps(found.record(), indent=2) if as_json else map_text(found))


def _check(name: str, groups: Sequence[str], check_architecture: Callable[[str], None]) -> None:
    try:
        check_architecture(name)
    except InputError as error:
        group = (
            nearest(name, groups).replace("Did you mean", "A group of conf/backbone is").rstrip("?")
        )
        message = str(error).replace("backbone.architecture=", "", 1)
        way_out = (
            "`python -m so_clip backbones --matching TEXT` lists models by a part of the name."
        )
        raise InputError(f"{message}{group + '.' if group else ''} {way_out}") from error


def _show_list(pattern: str | None, text: str | None, as_json: bool) -> None:
    with _shown_progress("backbones: building models without weights") as report:
        from so_clip.backbones.models import architecture_names, groups_of, listed

        every = architecture_names()
        names = [name for name in every if _fits(name, groups_of(name), pattern, text)]
        if not names:
            asked = pattern or f"--matching {text}"
            raise InputError(
                f"{asked}: open_clip has no such model.{nearest(str(pattern or text), every)} "
                f"`python -m so_clip backbones` lists all {len(every)}."
            )
        count = len(names)
        numbers = iter(range(1, count + 1))
        models = list(listed(names, lambda name: report(f"{next(numbers)} of {count}: {name}")))
    if as_json:
        show(json.dumps([model.record() for model in models], indent=2))
    else:
        show(list_text(models))


def _fits(name: str, groups: Sequence[str], pattern: str | None, text: str | None) -> bool:
    names = [known.lower() for known in (name, *groups)]
    if pattern is not None:
        return any(fnmatchcase(known, pattern.lower()) for known in names)
    return text is None or any(text.lower() in known for known in names)


@contextmanager
def _shown_progress(first: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the progress on a terminal; elsewhere one line is printed."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        show_progress(first)
        yield lambda text: None
        return
    with console.status(first) as status:
        yield status.update


def list_text(models: Sequence["Model"]) -> str:
    """Return the list as a table for a person, with notes below."""
    notes: dict[tuple[str, ...], str] = {}
    rows = [_HEADINGS, *(_row(model, notes) for model in models)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += ["", f"{len(models)} models. 12 x 768: blocks and width. Weights in millions."]
    lines.append("D: size of the embeddings. published: number of published weights.")
    if any(_is_on_hub(model) for model in models):
        lines.append("on the hub: the sizes of this text tower are a file of the hub.")
    for refused, letter in notes.items():
        lines += _wrapped(f"all but ({letter}): {', '.join(refused)}", "")
    lines.append("`python -m so_clip backbones NAME` has the reasons, and the roles of a model.")
    return "\n".join(lines)


_HEADINGS = (
    *("architecture", "pixels", "image tower", "weights", "text tower", "weights", "tokens", "D"),
    *("published", "group", "methods"),
)
_RIGHT = {1, 3, 5, 6, 7, 8}


def _row(model: "Model", notes: dict[tuple[str, ...], str]) -> tuple[str, ...]:
    return (
        model.architecture,
        str(model.image_size),
        _size(model.vision),
        _millions(model.vision.weights),
        _size(model.text) if model.text else "on the hub" if _is_on_hub(model) else "-",
        _millions(model.text.weights) if model.text else "-",
        str(model.context_length or "-"),
        str(model.dimensions),
        str(len(model.published) or "-"),
        ", ".join(model.groups) or "-",
        _methods(model.refused, notes),
    )


def _is_on_hub(model: "Model") -> bool:
    """Return whether there is a text tower whose sizes are not on this machine."""
    return model.text is None and model.context_length > 0


def _methods(refused: list[str] | None, notes: dict[tuple[str, ...], str]) -> str:
    if not refused:
        return "-" if refused is None else "all"
    number = len(notes)
    letter = _LETTERS[number % len(_LETTERS)] * (1 + number // len(_LETTERS))
    return f"all but ({notes.setdefault(tuple(refused), letter)})"


def _size(tower: "TowerSize") -> str:
    return f"{tower.kind} {tower.blocks} x {tower.width}" if tower.blocks else tower.kind


def _millions(count: int) -> str:
    return f"{count / 10**6:,.1f}"


def map_text(found: "ModelMap") -> str:
    """Return a model in detail as text for a person."""
    group = f" (backbone={' or '.join(found.groups)})" if found.groups else ""
    prompts = f"prompts of {found.context_length} tokens" if "text" in found.towers else "no text"
    lines = [
        f"{found.architecture}{group}",
        f"images of {found.image_size} x {found.image_size} pixels, {prompts}, embeddings of "
        f"{found.dimensions} numbers",
    ]
    if found.hub_files:
        lines.append(
            f"its tokenizer or text tower needs files of the hub: {', '.join(found.hub_files)}"
        )
    titles = {"vision": "image tower", "text": "text tower"}
    for name, tower in found.towers.items():
        lines += ["", *_tower_lines(titles[name], tower)]
    lines += ["", "A parameter can have several roles: a norm's bias is norm and bias.", ""]
    lines += _published_lines(found.published)
    count = len(found.applies) + len(found.refused)
    lines += ["", f"methods that apply: {len(found.applies)} of {count}"]
    lines += _wrapped(", ".join(found.applies), "  ")
    by_reason: dict[str, list[str]] = {}
    for method, reason in found.refused.items():
        by_reason.setdefault(reason, []).append(method)
    for reason, methods in by_reason.items():
        lines += ["", *_wrapped(f"not {', '.join(methods)}:", ""), *_wrapped(reason, "  ")]
    return "\n".join(lines)


def _tower_lines(title: str, tower: "TowerMap") -> list[str]:
    size = tower.size
    lines = [f"{title}: {size.kind}, {_millions(size.weights)} million weights"]
    if size.blocks:
        lines.append(f"  {size.blocks} blocks, {tower.first_block} to {tower.last_block}")
    cells = [("role", "tensors", "weights", "shapes", "example"), *map(_role_cells, tower.roles)]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    for role, tensors, weights, shapes, example in cells:
        lines.append(
            f"  {role.ljust(widths[0])}  {tensors.rjust(widths[1])}  {weights.rjust(widths[2])}  "
            f"{shapes.ljust(widths[3])}  {example}"
        )
    return lines


def _role_cells(row: "RoleRow") -> tuple[str, ...]:
    shape = "x".join(map(str, row.shapes[0][0])) or "1"
    others = len(row.shapes) - 1
    shapes = f"{shape} and {others} more" if others else shape
    return row.role, str(row.tensors), f"{row.weights:,}", shapes, row.example


def _published_lines(published: dict[str, "Preprocessing"]) -> list[str]:
    if not published:
        return ["published weights: none. Give backbone.checkpoint=FILE."]
    tags: dict[Any, list[str]] = {}
    for tag, kind in published.items():
        tags.setdefault(kind, []).append(tag)
    lines = ["published weights (backbone.pretrained=), by the pixels that they were trained on:"]
    for kind, names in tags.items():
        cut = "" if kind.crop_share == 1 else f", centre {kind.crop_share:g}"
        values = (
            f"{kind.resize_mode}{cut}, {kind.interpolation}, mean {_colour(kind.mean)}, "
            f"std {_colour(kind.std)}"
        )
        lines += [f"  {values}", *_wrapped(", ".join(names), "    ")]
    return lines


def _colour(values: tuple[float, ...]) -> str:
    return "[" + ",".join(f"{value:.4g}" for value in values) + "]"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )

"""`python -m so_clip doctor`: say of every dataset what is there, what is not, what mends it."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from so_clip.checks import one_of, optional_path, path, whole
from so_clip.cli.guard import guarded
from so_clip.data.cards.card import USER_LAYOUTS, card_names, load_card
from so_clip.errors import InputError, RunFailed, nearest
from so_clip.prepare.examine import (
    ABSENT,
    FAULTY,
    IMAGENET,
    REPAIR,
    STATES,
    WHOLE,
    Diagnosis,
    examine,
    examine_own,
)
from so_clip.system.paths import CARDS_DIR

USAGE = """\
Examine the datasets below a data root. Every image that a split file lists is looked for; those
that look cut short, and a sample of the others, are decoded. Nothing is written.

  python -m so_clip doctor data_root=data
  python -m so_clip doctor data_root=data dataset=eurosat check=all

  data_root   the folder of all datasets; default data
  dataset     one, several (a,b) or all, the default: then what is absent altogether is no fault
  check       sampled, the default | all: decode every image
  samples     how many images of a dataset are decoded when sampled; default 500
  cards_dir   another folder of cards
  dataset=folder, dataset=csv   your own images in data_root, with all of their options
  --json      print one JSON document in place of the report

CoOp's layout, which Tip-Adapter and PromptSRC share, and torchvision's are recognised and used in
place. Exit codes: 0 all is well, 1 something is not, 2 the input cannot be used."""
JSON = "--json"
ALL = "all"
CHECKS = ("sampled", "all")
DEFAULTS: dict[str, Any] = {
    "data_root": "data",
    "dataset": ALL,
    "check": "sampled",
    "samples": "500",
    "cards_dir": None,
}


def main() -> int:
    """Run the command line of `python -m so_clip doctor`; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    own = [argument for argument in arguments if argument.startswith("dataset.")]
    values = _values([each for each in arguments if each != JSON and each not in own])
    root = path("data_root", values["data_root"])
    samples = int(values["samples"]) if values["samples"].isdecimal() else values["samples"]
    samples = whole("samples", samples, 0)
    check = one_of("check", values["check"], CHECKS)
    cards_dir = optional_path("cards_dir", values["cards_dir"]) or CARDS_DIR
    decode = None if check == "all" else samples
    if own or values["dataset"] in USER_LAYOUTS:
        diagnoses = [_own(values["dataset"], root, own, decode)]
        own = [f"dataset={values['dataset']}", *own]
    elif not root.is_dir():
        raise InputError(f"data_root={root}: there is no such folder. Give the one with datasets.")
    else:
        names = _names(values["dataset"], cards_dir)
        cards = [load_card(name, cards_dir) for name in names]
        diagnoses = [examine(card, root, decode) for card in cards]
    of_all = values["dataset"] == ALL
    if JSON in arguments:
        print(json.dumps([each.as_json() for each in diagnoses], indent=2, ensure_ascii=False))
    else:
        print("\n".join(report(diagnoses, root, of_all)))
    _conclude(diagnoses, of_all, root, own, quiet=JSON in arguments)


def _own(layout: str, root: Path, options: list[str], decode: int | None) -> Diagnosis:
    """Examine one's own images."""
    # Only now, since Hydra takes a while to import.
    from so_clip.config.compose import compose
    from so_clip.config.user_data import user_data

    composed = compose([f"dataset={layout}", *options])
    values = OmegaConf.to_container(composed["dataset"], resolve=True)
    assert isinstance(values, dict)
    name, own = user_data({str(key): value for key, value in values.items()}, root)
    if own is None:
        raise InputError(f"{options[0]}: is an option of a run. Leave it out.")
    return examine_own(name, own, decode)


def report(diagnoses: Sequence[Diagnosis], root: Path, of_all: bool) -> list[str]:
    """Return what to print: what is whole, what is not and what mends it, then what is absent.

    Args:
        diagnoses: of the datasets.
        root: the folder of all datasets.
        of_all: nobody has asked for any by name, so that what is absent needs but a line.
    """
    by_state = {state: [each for each in diagnoses if each.state == state] for state in STATES}
    shown = by_state[WHOLE] + by_state[FAULTY] + ([] if of_all else by_state[ABSENT])
    lines = [line for each in shown for line in _lines(each)]
    if of_all:
        told = [each for each in by_state[ABSENT] if each.remedy == _prepared([each], root)]
        if told:
            names = ", ".join(each.name for each in told)
            lines.append(f"absent: {names}; each is fetched by: {_prepared('NAME', root)}")
        others = [each for each in by_state[ABSENT] if each not in told]
        lines += [f"absent: {each.name}; {each.remedy or each.faults[0]}" for each in others]
    return lines


def _lines(found: Diagnosis) -> list[str]:
    """Return the lines that tell one diagnosis to a person."""
    said = f"{found.name}: {found.state}"
    if found.images:
        said += f", {found.images} images"
    if found.decoded:
        said += f", {found.decoded} of them decoded"
    lines = [said]
    lines += [f"  fault: {fault}" for fault in found.faults]
    lines += [f"  note: {note}" for note in found.notes]
    return lines + ([f"  repair: {found.remedy}"] if found.remedy else [])


def _prepared(datasets: Sequence[Diagnosis] | str, root: Path) -> str:
    names = datasets if isinstance(datasets, str) else ",".join(each.name for each in datasets)
    return f"python -m so_clip prepare dataset={names} data_root={shlex.quote(str(root))}"


def _conclude(
    diagnoses: Sequence[Diagnosis], of_all: bool, root: Path, own: Sequence[str], quiet: bool
) -> None:
    """Sum up, with the one command that comes next; not where all is well and `quiet`.

    Raises:
        RunFailed: something that was asked for is not well.
    """
    bad = [
        each for each in diagnoses if each.state == FAULTY or not (of_all or each.state == WHOLE)
    ]
    here = [each for each in diagnoses if each.state != ABSENT]
    if bad:
        count = f"{len(bad)} of {len(here) if of_all else len(diagnoses)} datasets"
        verb = "is" if len(bad) == 1 else "are"
        raise RunFailed(f"{count} {verb} not whole. {_next(bad, root)}")
    below = [each for each in here if each.folder is not None]
    if of_all and not below:
        absent = [each for each in diagnoses if each.remedy == _prepared([each], root)]
        first = f" Next: {_prepared(absent[:1], root)}" if absent else ""
        raise RunFailed(f"data_root={root}: none of the datasets is there.{first}")
    if not quiet:
        count = f"{len(here)} dataset{'s are' if len(here) > 1 else ' is'} whole"
        print(f"{count}. Next: {_run((below or here)[0], root, own)}")


def _next(bad: Sequence[Diagnosis], root: Path) -> str:
    """Return the command that mends all there is to mend, or as much of it as one can."""
    mended = [each for each in bad if each.remedy.startswith(_prepared([each], root))]
    together = [each for each in mended if IMAGENET not in each.remedy]
    if together:
        repair = any(each.remedy.endswith(REPAIR) for each in together)
        return f"Next: {_prepared(together, root)}{f' {REPAIR}' if repair else ''}"
    first = next((each.remedy for each in bad if each.remedy), "")
    return f"Next: {first}" if first else "Mend what is said above, and ask again."


def _run(found: Diagnosis, root: Path, own: Sequence[str]) -> str:
    """Return a first run on a dataset that is whole; `own` are the options of one's own images."""
    options = [*(own or [f"dataset={found.name}"])]
    if found.folder is not None:
        options += [f"data_root={root}", "backbone=vit_b16"]
    return shlex.join(["python", "-m", "so_clip", *options])


def _values(arguments: list[str]) -> dict[str, Any]:
    values = dict(DEFAULTS)
    given: set[str] = set()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in DEFAULTS or not equals:
            kind = "flag" if argument.startswith("-") else "option"
            raise InputError(
                f"{argument}: there is no such {kind}.{nearest(key, [*DEFAULTS, JSON])} "
                "`python -m so_clip doctor --help` lists them all; they are written OPTION=VALUE."
            )
        if key in given:
            raise InputError(f"{argument}: {key} is given twice. Give it once.")
        given.add(key)
        values[key] = text
    return values


def _names(asked: str, cards_dir: Path) -> list[str]:
    return card_names(cards_dir) if asked == ALL else list(dict.fromkeys(asked.split(",")))


if __name__ == "__main__":
    sys.exit(main())

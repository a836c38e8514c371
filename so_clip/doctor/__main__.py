"""`python -m so_clip.doctor`: say of every dataset what is there, what is not, what mends it."""

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from so_clip.__main__ import guarded
from so_clip.data.cards import OWN_LAYOUTS, card_names, load_card
from so_clip.doctor.examine import ABSENT, FAULTY, Diagnosis, examine, examine_own, worst
from so_clip.errors import InputError, RunFailed, nearest
from so_clip.paths import CARDS_DIR
from so_clip.values import one_of, optional_path, path, whole

USAGE = """\
Examine the datasets below a data root. Every image that a split file lists is looked for; those
that look cut short, and a sample of the others, are decoded. Nothing is written.

  python -m so_clip.doctor data_root=data
  python -m so_clip.doctor data_root=data dataset=eurosat check=all

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
    """Run the command line of `python -m so_clip.doctor`; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    own = [argument for argument in arguments if argument.startswith("dataset.")]
    values = _values([each for each in arguments if each != JSON and each not in own])
    root = path("data_root", values["data_root"])
    if not root.is_dir():
        raise InputError(f"data_root={root}: there is no such folder. Give the one with datasets.")
    samples = int(values["samples"]) if values["samples"].isdecimal() else values["samples"]
    samples = whole("samples", samples, 0)
    check = one_of("check", values["check"], CHECKS)
    cards_dir = optional_path("cards_dir", values["cards_dir"]) or CARDS_DIR
    decode = None if check == "all" else samples
    if own or values["dataset"] in OWN_LAYOUTS:
        diagnoses = [_own(values["dataset"], root, own, decode)]
    else:
        names = _names(values["dataset"], cards_dir)
        cards = [load_card(name, cards_dir) for name in names]
        diagnoses = [examine(card, root, decode) for card in cards]
    if JSON in arguments:
        print(json.dumps([each.as_json() for each in diagnoses], indent=2, ensure_ascii=False))
    else:
        print("\n".join(line for each in diagnoses for line in report(each)))
    _conclude(diagnoses, values["dataset"] == ALL, root)


def _own(layout: str, root: Path, options: list[str], decode: int | None) -> Diagnosis:
    """Examine one's own images."""
    # Only now, since Hydra takes a while to import.
    from so_clip.config import compose
    from so_clip.own_options import own_data

    composed = compose([f"dataset={layout}", *options])
    values = OmegaConf.to_container(composed["dataset"], resolve=True)
    assert isinstance(values, dict)
    name, own = own_data({str(key): value for key, value in values.items()}, root)
    if own is None:
        raise InputError(f"{options[0]}: is an option of a run. Leave it out.")
    return examine_own(name, own, decode)


def _conclude(diagnoses: list[Diagnosis], of_all: bool, root: Path) -> None:
    """Raise RunFailed unless all that was asked for is well."""
    counts = worst(diagnoses)
    bad = counts[FAULTY] + (0 if of_all else counts[ABSENT])
    below = [each for each in diagnoses if each.folder is not None]
    if of_all and all(each.state == ABSENT for each in below):
        raise RunFailed(f"data_root={root}: none of {len(below)} datasets is there.")
    if bad:
        raise RunFailed(f"{bad} of {len(diagnoses)} datasets are not well; see the commands above.")


def report(found: Diagnosis) -> list[str]:
    """Return the lines that tell one diagnosis to a person."""
    said = f"{found.name}: {found.state}"
    if found.images:
        said += f", {found.images} images"
    if found.decoded:
        said += f", {found.decoded} of them decoded"
    if found.state == ABSENT:
        return [f"{said}    {found.remedy}".rstrip()]
    lines = [said]
    lines += [f"  fault: {fault}" for fault in found.faults]
    lines += [f"  note: {note}" for note in found.notes]
    return lines + ([f"  mend: {found.remedy}"] if found.remedy else [])


def _values(arguments: list[str]) -> dict[str, Any]:
    values = dict(DEFAULTS)
    given: set[str] = set()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if key not in DEFAULTS or not equals:
            kind = "flag" if argument.startswith("-") else "option"
            raise InputError(
                f"{argument}: there is no such {kind}.{nearest(key, [*DEFAULTS, JSON])} "
                "`python -m so_clip.doctor --help` lists them all; they are written OPTION=VALUE."
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

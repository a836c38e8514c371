"""What `python -m so_clip doctor` prints: states, faults, remedies and the next command."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from so_clip.errors import RunFailed
from so_clip.prepare.examine import (
    ABSENT,
    FAULTY,
    IMAGENET,
    REPAIR,
    STATES,
    WHOLE,
    Diagnosis,
    prepare_command,
)


def report(diagnoses: Sequence[Diagnosis], root: Path, all_cards: bool) -> list[str]:
    """Return the lines for a person: whole datasets, then faulty ones, then absent ones.

    Args:
        diagnoses: of the datasets.
        root: the folder of all datasets.
        all_cards: the user named no dataset, so one line lists all absent ones.
    """
    by_state = {state: [found for found in diagnoses if found.state == state] for state in STATES}
    shown = by_state[WHOLE] + by_state[FAULTY] + ([] if all_cards else by_state[ABSENT])
    lines = [line for found in shown for line in _lines(found)]
    if all_cards:
        absent = by_state[ABSENT]
        fetched = [found for found in absent if _is_fetched(found, root)]
        if fetched:
            names = ", ".join(found.name for found in fetched)
            lines.append(f"absent: {names}; each is fetched by: {prepare_command('NAME', root)}")
        others = [found for found in absent if found not in fetched]
        lines += [f"absent: {found.name}; {found.remedy or found.faults[0]}" for found in others]
    return lines


def _is_fetched(found: Diagnosis, root: Path) -> bool:
    return found.remedy == prepare_command(found.name, root)


def _lines(found: Diagnosis) -> list[str]:
    summary = f"{found.name}: {found.state}"
    if found.images:
        summary += f", {found.images} images"
    if found.decoded:
        summary += f", {found.decoded} of them decoded"
    lines = [summary]
    lines += [f"  fault: {fault}" for fault in found.faults]
    lines += [f"  note: {note}" for note in found.notes]
    return lines + ([f"  repair: {found.remedy}"] if found.remedy else [])


def conclusion(
    diagnoses: Sequence[Diagnosis], root: Path, all_cards: bool, user_options: Sequence[str]
) -> str:
    """Return the last line: how many datasets are whole, and a first run as the next command.

    Args:
        diagnoses: of the datasets.
        root: the folder of all datasets.
        all_cards: the user named no dataset, so absent datasets are no failure.
        user_options: the options of the user's own images; empty for datasets with cards.

    Raises:
        RunFailed: a dataset has faults or is absent. The message has the command that helps.
    """
    bad = [
        found
        for found in diagnoses
        if found.state == FAULTY or not (all_cards or found.state == WHOLE)
    ]
    present = [found for found in diagnoses if found.state != ABSENT]
    if bad:
        count = f"{len(bad)} of {len(present) if all_cards else len(diagnoses)} datasets"
        verb = "is" if len(bad) == 1 else "are"
        raise RunFailed(f"{count} {verb} not whole. {_next_command(bad, root)}")
    in_root = [found for found in present if found.folder is not None]
    if all_cards and not in_root:
        fetched = (found.remedy for found in diagnoses if _is_fetched(found, root))
        first = next((f" Next: {remedy}" for remedy in fetched), "")
        raise RunFailed(f"data_root={root}: none of the datasets is there.{first}")
    count = f"{len(present)} dataset{'s are' if len(present) > 1 else ' is'} whole"
    return f"{count}. Next: {_run_command((in_root or present)[0], root, user_options)}"


def _next_command(bad: Sequence[Diagnosis], root: Path) -> str:
    """Return one command that repairs as many datasets as possible."""
    prepared = [
        found for found in bad if found.remedy.startswith(prepare_command(found.name, root))
    ]
    together = [found for found in prepared if IMAGENET not in found.remedy]
    if together:
        repair = any(found.remedy.endswith(REPAIR) for found in together)
        command = prepare_command(",".join(found.name for found in together), root)
        return f"Next: {command} {REPAIR}" if repair else f"Next: {command}"
    first = next((found.remedy for found in bad if found.remedy), "")
    return f"Next: {first}" if first else "Correct the faults above and repeat this command."


def _run_command(found: Diagnosis, root: Path, user_options: Sequence[str]) -> str:
    options = [*(user_options or [f"dataset={found.name}"])]
    if found.folder is not None:
        options += [f"data_root={root}", "backbone=vit_b16"]
    return shlex.join(["python", "-m", "so_clip", *options])

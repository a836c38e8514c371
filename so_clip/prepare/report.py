"""What `python -m so_clip doctor` prints: states, faults, remedies and the next command."""

from collections.abc import Sequence

from so_clip.errors import RunFailed
from so_clip.prepare.diagnosis import ABSENT, FAULTY, STATES, WHOLE, Diagnosis, Place
from so_clip.prepare.examine import IMAGENET, REPAIR, prepare_command
from so_clip.system.commands import command


def report(diagnoses: Sequence[Diagnosis], place: Place, all_cards: bool) -> list[str]:
    """Return the lines for a person: whole datasets, then faulty ones, then absent ones.

    Args:
        diagnoses: of the datasets.
        place: the folder of all datasets, and of their cards.
        all_cards: the user named no dataset, so one line lists all absent ones.
    """
    by_state = {state: [found for found in diagnoses if found.state == state] for state in STATES}
    shown = by_state[WHOLE] + by_state[FAULTY] + ([] if all_cards else by_state[ABSENT])
    lines = [line for found in shown for line in _lines(found)]
    if all_cards:
        absent = by_state[ABSENT]
        fetched = [found for found in absent if _is_fetched(found, place)]
        if fetched:
            names = ", ".join(found.name for found in fetched)
            lines.append(f"absent: {names}; each is fetched by: {prepare_command('NAME', place)}")
        others = [found for found in absent if found not in fetched]
        lines += [f"absent: {found.name}; {found.remedy or found.faults[0]}" for found in others]
    return lines


def _is_fetched(found: Diagnosis, place: Place) -> bool:
    return found.remedy == prepare_command(found.name, place)


def _lines(found: Diagnosis) -> list[str]:
    summary = f"{found.name}: {found.state}"
    if found.images:
        summary += f", {found.images} images"
    if found.decoded:
        summary += f", {found.decoded} of them checked"
    lines = [summary]
    lines += [f"  fault: {fault}" for fault in found.faults]
    lines += [f"  note: {note}" for note in found.notes]
    return lines + ([f"  repair: {found.remedy}"] if found.remedy else [])


def conclusion(
    diagnoses: Sequence[Diagnosis], place: Place, all_cards: bool, run_options: Sequence[str]
) -> str:
    """Return the last line: how many datasets are whole, and a first run as the next command.

    Args:
        diagnoses: of the datasets.
        place: the folder of all datasets, and of their cards.
        all_cards: the user named no dataset, so absent datasets are no failure.
        run_options: options of runs that the user gave, such as those of the user's own images.

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
        raise RunFailed(f"{count} {verb} not whole. {_next_command(bad, place)}")
    in_root = [found for found in present if found.folder is not None]
    if all_cards and not in_root:
        fetched = (found.remedy for found in diagnoses if _is_fetched(found, place))
        first = next((f" Next: {remedy}" for remedy in fetched), "")
        raise RunFailed(f"data_root={place.root}: none of the datasets is there.{first}")
    count = f"{len(present)} dataset{'s are' if len(present) > 1 else ' is'} whole"
    return f"{count}. Next: {_run_command((in_root or present)[0], place, run_options)}"


def _next_command(bad: Sequence[Diagnosis], place: Place) -> str:
    """Return one command that repairs as many datasets as possible."""
    prepared = [
        found for found in bad if found.remedy.startswith(prepare_command(found.name, place))
    ]
    together = [found for found in prepared if IMAGENET not in found.remedy]
    if together:
        repair = [REPAIR] if any(found.remedy.endswith(REPAIR) for found in together) else []
        names = ",".join(found.name for found in together)
        return f"Next: {prepare_command(names, place, *repair)}"
    first = next((found.remedy for found in bad if found.remedy), "")
    return f"Next: {first}" if first else "Correct the faults above and repeat this command."


def _run_command(found: Diagnosis, place: Place, run_options: Sequence[str]) -> str:
    """Return a first run with the user's own choices."""
    chosen = {option.partition("=")[0] for option in run_options}
    if found.run_words:
        return command(*found.run_words, *place.options)
    of_data = [option for option in run_options if option.startswith("dataset")]
    others = [option for option in run_options if option not in of_data]
    options = of_data or [f"dataset={found.name}"]
    if found.folder is not None:
        options += place.options
        # The default backbone knows only digits.
        others += [] if chosen & {"backbone", "experiment"} else ["backbone=vit_b16"]
    return command(*options, *others)

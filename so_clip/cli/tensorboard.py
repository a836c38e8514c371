"""`python -m so_clip tensorboard`: runs as event files for TensorBoard."""

from pathlib import Path
from typing import Annotated

from so_clip.cli.arguments import OUT, ResultsDir, out_option
from so_clip.errors import say, show


def main(
    results_dir: ResultsDir,
    out: Annotated[Path | None, out_option("the event files", "events")] = None,
) -> None:
    """Write curves and plots of new and changed runs as event files for TensorBoard.

    It needs: pip install 'so-clip[tensorboard]'.

    Exit codes: 0 done, also if unusable runs are left out; 2 no run can be
    used, or the folder cannot be written.
    """
    from so_clip.report.tensorboard import export, require_tensorboard
    from so_clip.system import atomic
    from so_clip.system.commands import command

    require_tensorboard()
    out = out or results_dir / "events"
    with atomic.output_option(OUT):
        written, skipped = export(results_dir, out)
    for reason in skipped:
        say(f"left out: {reason}")
    runs = "run" if written == 1 else "runs"
    look = command("--logdir", out, program=("tensorboard",))
    show(f"{written} new or changed {runs}; look at them with: {look}")

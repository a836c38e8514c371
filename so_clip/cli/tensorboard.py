"""`python -m so_clip tensorboard RESULTS_DIR -o LOGDIR`: runs as event files for TensorBoard."""

import sys

from so_clip.cli.arguments import OUT, results_parser
from so_clip.cli.guard import guarded
from so_clip.report.tensorboard import export, require_tensorboard
from so_clip.system import atomic


def main() -> int:
    """Run the command line of `python -m so_clip tensorboard`; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    out_help = "folder for the event files (default: RESULTS_DIR/events)"
    options = results_parser("so_clip tensorboard", __doc__, out_help).parse_args(arguments)
    require_tensorboard()
    out = options.out or options.results_dir / "events"
    with atomic.placed_by(OUT):
        written, skipped = export(options.results_dir, out)
    for reason in skipped:
        print(f"so_clip: left out: {reason}", file=sys.stderr)
    runs = "run" if written == 1 else "runs"
    print(f"{written} new or changed {runs}; look at them with: tensorboard --logdir {out}")


if __name__ == "__main__":
    sys.exit(main())

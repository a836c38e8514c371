"""Scripts that stand for the Slurm commands that a sweep uses: sbatch, srun, sacct, scontrol."""

import os
import sys
from pathlib import Path

_SBATCH = """\
# Keeps the script, and starts it for each task of its array.
cp "$1" "$FAKE_SLURM/script.sh"
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
export SLURM_JOB_ID SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=node
for task in $(seq 0 "$tasks"); do
  SLURM_JOB_ID=$((100 + task)) SLURM_ARRAY_TASK_ID=$task bash "$1" >>"$FAKE_SLURM/log" 2>&1 &
done
echo "Submitted batch job 7"
"""
_SRUN = """\
# Drops its own options: the command begins with the interpreter.
while [ "$1" != "$FAKE_SLURM_PYTHON" ]; do shift || exit 1; done
exec "$@"
"""
_SACCT = """\
echo 'JobID|State|NodeList'
for task in 0 1 2 3; do echo "7_$task|RUNNING|node"; done
"""
_SCONTROL = """\
# requeue JOB: again, once the job that asks for it has ended.
echo "$*" >>"$FAKE_SLURM/requeued"
(
  while kill -0 $PPID 2>/dev/null; do sleep 0.1; done
  exec bash "$FAKE_SLURM/script.sh"
) >>"$FAKE_SLURM/log" 2>&1 &
"""


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; return the environment variables that select them.

    script.sh is the submitted script, and `requeued` has the requeued jobs.
    """
    commands = {"sbatch": _SBATCH, "srun": _SRUN, "sacct": _SACCT, "scontrol": _SCONTROL}
    (folder / "bin").mkdir(parents=True)
    for name, text in commands.items():
        file = folder / "bin" / name
        file.write_text(f"#!/bin/bash\n{text}")
        file.chmod(0o755)
    return {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FAKE_SLURM": str(folder),
        "FAKE_SLURM_PYTHON": sys.executable,
    }

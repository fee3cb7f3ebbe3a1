"""Tasks of a Slurm job array that compute a part each: numbered from 1, as the parts are."""

from __future__ import annotations

from collections.abc import Mapping

from precompute.errors import UsageError


def check_array(part: str, environment: Mapping[str, str]) -> None:
    """Raise UsageError where the tasks of this job array are numbered from 0 and their numbers are used for parts, I/N.

    Task 0 would fail, the last part would be nobody's, and all other tasks would work for hours before that is seen.
    environment: the process's. Another use of a number that happens to be the same cannot be distinguished, so only an
    array of just N tasks, 0 to N-1, is taken for the mistake.
    """
    task, least, most = (environment.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "MIN", "MAX"))
    if least == "0" and most.isdecimal() and part == f"{task}/{int(most) + 1}":
        of = int(most) + 1
        raise UsageError(
            f"The tasks of this job array are numbered 0 to {most}, and parts 1 to {of}: nobody would compute part "
            f"{of} of {of}.",
            hint=f"Submit the array as sbatch --array=1-{of}.",
        )

"""submitit's part: the batch script of a job array, and handing it to sbatch.

The tasks are not pickled calls, as submitit's usually are, but `python -m resvar.sweeps.task`, and
read what the submission wrote before sbatch was called. So a submitter may be killed right after
sbatch, when submitit would still have to put a pickle where the task looks for it, and a task while
it would renew that pickle.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from contextlib import redirect_stderr

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from resvar.errors import RunError, UserError
from resvar.sweeps.resources import Resources
from resvar.sweeps.submission import Submission

UNREACHED = re.compile(r"contact|timed out|temporarily|connection|socket", re.IGNORECASE)
"""What sbatch says where the controller is at fault, and not what it was asked for."""


NO_GPUS = "; say --device cpu, or another gpus_per_task in the launcher's file"


class RefusedError(UserError):
    """sbatch has refused the job: nothing was submitted."""


class ArrayExecutor(submitit.SlurmExecutor):
    """A job array whose tasks work through a submission.

    Args:
        gpus: for each task, as `--gpus-per-node` takes them; 0 for none.
        cpus: for each task.
        parallel: tasks at work at a time, at most.
    """

    def __init__(
        self,
        submission: Submission,
        resources: Resources,
        gpus: int | str,
        cpus: int,
        parallel: int | None,
    ) -> None:
        super().__init__(submission.folder)
        count = len(submission.tasks)
        extra = {"requeue": True, "signal": f"USR2@{resources.signal_delay}", **resources.sbatch}
        if resources.time is not None:
            extra["time"] = resources.time
        self.update_parameters(
            job_name=submission.name,
            partition=resources.partition,
            account=resources.account,
            qos=resources.qos,
            time=None,  # submitit's own default is five minutes
            mem=resources.mem,
            gpus_per_node=gpus or None,  # the task is alone on its node
            cpus_per_task=cpus,
            array_parallelism=min(parallel or count, count),
            setup=list(resources.setup) or None,
            signal_delay_s=resources.signal_delay,
            stderr_to_stdout=True,
            wckey=None,
            srun_args=["--cpus-per-task", str(cpus)],  # since Slurm 22.05 srun does not inherit it
            additional_parameters=extra,
        )
        self.parameters["map_count"] = count  # that is how submitit asks for an array

    @classmethod
    def affinity(cls) -> int:
        """submitit asks this whether Slurm is here; a script can be written without."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        """A signal that comes while Python starts would end it: until it listens, it is deaf."""
        python = [sys.executable, "-u", "-m", "resvar.sweeps.task", str(self.folder)]
        return shlex.join(["bash", "-c", 'trap "" USR2 TERM; exec "$@"', "resvar", *python])

    def script(self) -> str:
        """The batch script."""
        return self._make_submission_file_text(self._submitit_command_str, "")

    def submit_array_job(self) -> str:
        """Call sbatch; the id of the array.

        Raises:
            RefusedError: sbatch refuses the job, and why.
            RunError: Slurm cannot be reached, or its answer not be understood; the job may be in
                the queue all the same.
        """
        said = io.StringIO()
        try:
            with redirect_stderr(said):  # submitit prints there what it raises too
                return self._submit_command(self._submitit_command_str).job_id
        except FailedJobError as error:
            reason = _reason(str(error))
            if UNREACHED.search(reason):
                raise RunError(f"sbatch could not reach Slurm ({reason}); try again.") from error
            raise RefusedError(f"sbatch refuses the job: {reason}.") from error
        except FailedSubmissionError as error:
            raise RunError(f"sbatch's answer is not understood ({error}).") from error


def _reason(said: str) -> str:
    """Why sbatch failed, in its words, and the mend where they are dark."""
    lines = [re.sub(r"^sbatch: ((error|fatal): )?", "", line) for line in said.splitlines()]
    words = [line.rstrip(".") for line in lines if line.strip() and not line.startswith("Try ")]
    reason = "; ".join(words) or "it does not say why"
    return reason + (NO_GPUS if "generic resource" in reason else "")

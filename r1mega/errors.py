"""Errors a user can mend. Each says what was wrong, what was found, where, and how to mend it.

The command line prints the message alone and leaves with exit code 2, or with the `exit_code` that an exception
carries; anything else is a defect of ours and shows its traceback. Imports nothing of r1mega.
"""

from collections.abc import Sequence


class R1MegaError(Exception):
    """A fault in what the program was given: shown without a traceback, exit code 2."""


class ConfigError(R1MegaError):
    """A config file, a `--set` override or a combination of settings that cannot be run."""


class DataError(R1MegaError):
    """A data file or a row of one that cannot be used; names the file and the line."""


class RunDirError(R1MegaError):
    """A run directory that cannot be created, written or resumed."""


class CheckpointError(R1MegaError):
    """A checkpoint that is missing, incomplete, or belongs to another run."""


class WeightMappingError(R1MegaError):
    """Tensors that do not map one to one between Megatron and Hugging Face; lists every one of them."""


class ConversionError(R1MegaError):
    """A conversion that cannot start or end: its output exists, its disk is full, its source changed under it."""


class RolloutError(R1MegaError):
    """The sampling side cannot start, does not answer in time, or answers with something else than asked."""


class ServerLostError(RolloutError):
    """A server that is gone where no other can take its place: what was answered is kept, and the run resumes."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: nothing that the user gave is wrong, so launchers start the run again."""


class MismatchError(R1MegaError):
    """vLLM and Megatron disagree on the log-probabilities of the same tokens by more than the bound."""


class DivergenceError(R1MegaError):
    """Loss or gradient is no longer a finite number, or far from what it was."""


class RolledBackError(DivergenceError):
    """The run goes back to an earlier checkpoint, which it does by starting again."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: launchers start the run again."""


class RewardError(R1MegaError):
    """A reward cannot be computed as configured."""


class EndpointError(R1MegaError):
    """An endpoint that refuses what it is asked, or a budget of it that is used up."""


class EndpointLostError(EndpointError):
    """An endpoint that fails again and again: what was answered is kept, and the run may be resumed later."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: nothing that the user gave is wrong."""


class SlurmSilentError(R1MegaError):
    """Slurm's controller does not answer, within a job."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: nothing that the user gave is wrong, so the job is requeued."""


class RanksLostError(Exception):
    """Another rank of the trainer is gone or does not answer. Nobody's fault to mend: the run resumes."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h, and no code that Python or a signal gives: launchers (runtime/ranks.py,
    slurm/rank.sh) look past it for the rank that failed by itself."""


_OF_A_LOST_RANK = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting",
    "Connection was likely closed",
)  # fmt: skip


def is_of_a_lost_rank(error: BaseException) -> bool:
    """Whether an error says what gloo and torch's store say to a rank whose partner is gone."""
    return any(words in str(error) for words in _OF_A_LOST_RANK)


MAX_LISTED = 100
"""Lines of a message that lists faults; how many more there are is said."""


def listed(head: str, faults: Sequence[str]) -> str:
    """A message with a line for each fault, `MAX_LISTED` of them at most."""
    more = [f"and {len(faults) - MAX_LISTED} more"] if len(faults) > MAX_LISTED else []
    return "\n  ".join([head, *faults[:MAX_LISTED], *more])

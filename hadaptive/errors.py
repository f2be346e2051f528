"""What a person did wrong, as opposed to what the program did; and what ends a run that can go on."""

import shlex


def resuming(command: str, path: object) -> str:
    """The command line that resumes a run, to be pasted into a shell as it stands."""
    return shlex.join(["hadaptive", command, "--resume", str(path)])


class UserError(ValueError):
    """A mistake in the input that its author can mend: the message is one sentence that says what and how.

    The command line prints the sentence alone. Any other exception is a fault of ours and shows its traceback.

    Attributes:
        of_one_process: it may show in one of several processes only, as an image that cannot be read.
    """

    of_one_process = False


class MainProcessError(UserError):
    """The main process failed, and says why itself; this one ends with it."""


class TrainingInterruptedError(Exception):
    """Ctrl-C or a termination signal; the run can be resumed.

    Attributes:
        command: the one that resumes it; "" for several that the same command goes on with.
    """

    def __init__(self, path: str, command: str = "train") -> None:
        super().__init__(path)
        self.command = command


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its kind where there is none."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from ")]
    return lines[0] if lines else type(error).__name__

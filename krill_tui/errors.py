"""The errors Krill raises on purpose, each with one clear line and an exit code."""

from __future__ import annotations

import errno
from pathlib import Path

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 130
"""By Ctrl-C or SIGTERM; as a shell says it of SIGINT."""
EXIT_BROKEN_PIPE = 141
"""Nobody reads the output any more; as a shell says it of SIGPIPE."""


class KrillError(Exception):
    """Something a person can understand and act on; never shown with a traceback.

    `message` is one line that says what is wrong; `hint`, where there is one, says what to do.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(KrillError):
    """The configuration cannot be read or holds a wrong field."""

    exit_code = EXIT_USAGE


class UsageError(KrillError):
    """A command was given arguments that cannot work."""

    exit_code = EXIT_USAGE


class DataError(KrillError):
    """A file of the user's (trajectories, bank, game) cannot be read as what it should be."""

    exit_code = EXIT_USAGE


class StorageError(KrillError):
    """The operating system refused to read or write a file: the disk is full, read-only, or gone."""

    def __init__(self, path: Path | str, error: OSError, *, action: str = "written") -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(f"{path}: cannot be {action}: {reason}", hint=STORAGE_HINTS.get(error.errno or 0))


STORAGE_HINTS = {
    errno.ENOSPC: "free some space; nothing that was finished is lost, and the same command goes on",
    errno.EDQUOT: "free some space; nothing that was finished is lost, and the same command goes on",
    errno.EFBIG: "the limit for the size of a file is reached",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many files are open: lower env.concurrency, or raise `ulimit -n`",
    errno.ENFILE: "too many files are open: lower env.concurrency, or raise `ulimit -n`",
}


class RunLockedError(KrillError):
    """Another process is writing to this run."""


class ServiceError(KrillError):
    """A world or a model that an episode needs failed.

    `unreachable`: nobody answers, or only to say that the service is out of order (connection refused, reset or not
    resolved, no answer in time, 502 to 504, a rate limit that outlasted its retries; of a model endpoint every 5xx).
    It says nothing about the game: episodes wait and are played again. A 500 for one game is not this.
    `permanent`: no call can succeed until somebody changes a setting (a wrong key, a model that is not there): the
    phase ends at once. Neither: this episode alone is broken.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, unreachable: bool = False, permanent: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.unreachable = unreachable
        self.permanent = permanent


class EnvironmentFailure(ServiceError):
    """An environment broke: its episode ends as `error`, its siblings go on."""


class ModelError(ServiceError):
    """A model endpoint or the model worker failed for good, after its retries."""


class ModelRefusedError(ModelError):
    """This model, template or adapter cannot be worked with: said once, when it is loaded."""

    exit_code = EXIT_USAGE


class WorkerDiedError(ModelError):
    """The model worker is gone; it is started again from the last checkpoint and the phase goes on."""


class SplitProtectedError(KrillError):
    """Somebody tried to show the teacher games of a split that is reported."""

"""The errors Krill raises on purpose, each with one clear line and an exit code."""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 130


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


class RunLockedError(KrillError):
    """Another process is writing to this run."""


class EnvironmentFailure(KrillError):
    """An environment broke: its episode ends as `error`, its siblings go on."""


class ModelError(KrillError):
    """A model endpoint or the model worker failed for good, after its retries."""


class WorkerDiedError(ModelError):
    """The model worker is gone; it is started again from the last checkpoint and the phase goes on."""


class SplitProtectedError(KrillError):
    """Somebody tried to show the teacher games of a split that is reported."""

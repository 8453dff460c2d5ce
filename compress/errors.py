"""Errors a user can act on: what is wrong, where, what to do."""

from __future__ import annotations


class CompressError(Exception):
    """A mistake or a condition that the user can mend; the command line prints it without a traceback.

    `where` names the place (recipe key and line, file, site), `remedy` says what to do about it.
    """

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.message, self.where, self.remedy = message, where, remedy
        super().__init__(self.render())

    def render(self) -> str:
        """Join the parts into the text that is shown, one part a line."""
        lines = [self.message]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)


class RecipeError(CompressError):
    """The recipe, or a `--set` beside it, cannot be used."""


class DataError(CompressError):
    """A data set is missing, empty or of the wrong kind."""


class ModelError(CompressError):
    """A model cannot be found, loaded or converted."""


class SiteError(CompressError):
    """A feed-forward network inside the model cannot be found or replaced."""


class CheckpointError(CompressError):
    """A compressed checkpoint is incomplete, damaged or newer than this version."""


class JobError(CompressError):
    """An output folder cannot be used: it holds something else, or a job that does not match."""


class DiskFullError(CompressError):
    """There is no room to write a file; what was there before is untouched."""


class KernelError(CompressError):
    """The native kernel is missing where it is required, or was given what it cannot run."""


class HubError(CompressError):
    """The hub refuses an upload, or cannot be reached."""

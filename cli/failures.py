"""How commands end when they cannot finish: a user's mistake, an interruption."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from compress.errors import CompressError

MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143
_PATIENCE = 3  # seconds until a job that comes to no durable state is ended behind the last one


class Commands(TyperGroup):
    """The group of all commands; a failure that is neither of these keeps its traceback and ends with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a CompressError becomes one message and exit code 2, an interruption 130."""
        try:
            return super().invoke(ctx)
        except CompressError as error:
            typer.echo(f"error: {error.render()}", err=True)
            raise typer.Exit(MISTAKE) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def resumable(
    out: Path, trust_remote_code: bool = False, *, begun: Path = Path(".job", "journal.json"), how: str | None = None
) -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM end a job in `out` behind a durable state, and tell how to go on.

    begun: the file in `out` without which there is nothing to go on with.  how: the command that goes on.
    Gives what the job asks at every step. Where it does not come to ask, as in a long computation that is no step, it
    is ended after a few seconds behind its last durable state. A second signal ends the process at once.
    """
    from compress.distill.stopped import Stopped

    received: list[int] = []
    how = resume_command(out, trust_remote_code) if how is None else how
    mark = out / begun

    def begin(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in kept:
            signal.signal(other, signal.SIG_DFL)
        if not mark.exists():
            raise KeyboardInterrupt
        _say(f"\nending behind a durable state (again to end at once); continue with: {how}\n")
        signal.signal(signal.SIGALRM, lapse)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    def lapse(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def asked() -> bool:
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0)  # the job knows, and saves before it ends
        return bool(received)

    # One that is ignored, as in the background of a shell or under nohup, stays ignored.
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    kept = {number: handler for number, handler in kept.items() if handler != signal.SIG_IGN}
    for number in kept:
        signal.signal(number, begin)
    try:
        yield asked
    except (KeyboardInterrupt, Stopped):
        what = "terminated" if received[:1] == [signal.SIGTERM] else "interrupted"
        typer.echo(f"{what}; continue with: {how}" if mark.exists() else what, err=True)
        raise typer.Exit(TERMINATED if what == "terminated" else INTERRUPTED) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    """Write from within a signal handler, where the streams' own buffers may be in use."""
    os.write(2, text.encode())


def resume_command(out: Path, trust_remote_code: bool = False) -> str:
    """Give the command that continues the job in `out`."""
    import shlex

    return f"compress resume {shlex.quote(str(out))}" + (" --trust-remote-code" if trust_remote_code else "")

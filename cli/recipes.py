"""`compress recipes`: what recipes come with the program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe; without it, all are listed.")] = None,
) -> None:
    """List the bundled recipes, or print one."""
    from compress.recipe import bundled_recipes

    bundled = bundled_recipes()
    if name is None:
        width = max(map(len, bundled), default=0)
        for key, path in bundled.items():
            typer.echo(f"{key:<{width}}  {first_comment(path)}".rstrip())
        return
    if name not in bundled:
        import difflib

        from compress.errors import RecipeError

        close = difflib.get_close_matches(name, bundled, n=1)
        raise RecipeError(
            f"no bundled recipe {name!r}",
            remedy=f"did you mean {close[0]}?" if close else f"choose one of {', '.join(bundled)}",
        )
    typer.echo(bundled[name].read_text(encoding="utf-8"), nl=False)


def first_comment(path: Path) -> str:
    """What a bundled file says of itself."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ").strip() for line in lines if line.startswith("#")), "")

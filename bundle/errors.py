"""The errors a user sees: what is wrong, where, and what to do about it, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_LENGTH = 1000  # of each of a message's three texts; beyond any sentence and most paths
MAX_OFFERED = 5  # close matches in a message


def printable(text: str) -> str:
    """One line of bounded length that a terminal can show; the text may quote a hostile file."""
    line = " ".join(text.split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return shown if len(shown) <= MAX_LENGTH else shown[: MAX_LENGTH - 1] + "…"


def first_problem(error: ValidationError) -> str:
    """What a model refuses first, in a line: where in the data, and why."""
    first = error.errors()[0]
    place = ".".join(str(step)[:80] for step in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


class FusedgeError(Exception):
    """A failure whose cause lies in the user's input or machine, told in one line.

    `what` states the fact, `where` names the file, part, node or device, `hint` the way out.
    The command line prints it and exits with status 1; everything else is a bug and has a traceback.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = (printable(text) for text in (what, where, hint))
        super().__init__(self.line())

    def line(self) -> str:
        """The whole message, without a line break."""
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{advice}"


class BundleError(FusedgeError):
    """A bundle that is missing, damaged, from a later version, or at odds with itself."""


class UnknownNameError(FusedgeError):
    """A name that is in no table; the message offers the closest match, or else the whole table.

    Who knows better what is close says so by `close`, the best first; `listing` is where to find a table
    that is too long for a line.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        choices: Iterable[str],
        *,
        close: Sequence[str] | None = None,
        listing: str = "",
    ) -> None:
        known = sorted(choices)
        if close is None:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        if close:
            *others, last = map(repr, close[:MAX_OFFERED])
            hint = f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
            if listing and len(close) > MAX_OFFERED:
                hint += f" Or {listing}"
        else:
            hint = listing or f"known: {', '.join(known) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}", hint=hint)


class MissingExtraError(FusedgeError):
    """An optional package that is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            hint=f"pip install 'fusedge[{extra}]'",
        )

"""The account of every sample: received = used + dropped (by reason) + in flight, at any moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fusedge.bundle.errors import printable


class Account:
    """What became of the samples of one modality.

    `in_flight` is counted in the buffer itself, not derived, so that a lost sample shows.
    `first_dropped` says by reason which one was the first, where that is known.
    """

    def __init__(self, in_flight: Callable[[], int] = lambda: 0) -> None:
        self.received = 0
        self.used = 0
        self.dropped: dict[str, int] = {}
        self.first_dropped: dict[str, str] = {}
        self._in_flight = in_flight

    def drop(self, reason: str, count: int = 1, detail: str = "") -> None:
        """Count samples that will never be used."""
        if count:
            if detail and reason not in self.first_dropped:
                self.first_dropped[reason] = printable(detail)
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def in_flight(self) -> int:
        """Samples that wait in the buffer and whose fate is open."""
        return self._in_flight()

    @property
    def unaccounted(self) -> int:
        """Zero, unless the program is wrong."""
        return self.received - self.used - sum(self.dropped.values()) - self.in_flight

    def as_dict(self) -> dict[str, Any]:
        """For JSON; reasons in alphabetical order."""
        return {
            "received": self.received,
            "used": self.used,
            "dropped": dict(sorted(self.dropped.items())),
            "in_flight": self.in_flight,
        }


class Ledger:
    """The accounts of a session, by modality. What the bundle does not know is counted too."""

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self.accounts = dict(accounts)

    def account(self, modality: str) -> Account:
        """The account of a modality; opened on first sight where the bundle does not have it."""
        return self.accounts.setdefault(modality, Account())

    @property
    def balanced(self) -> bool:
        """Whether every sample is accounted for."""
        return all(account.unaccounted == 0 for account in self.accounts.values())

    def remarks(self) -> list[str]:
        """A line for each modality and reason of which the first case is known."""
        return [
            f"{name}: {account.dropped[reason]} {reason}, first: {detail}"
            for name, account in self.accounts.items()
            for reason, detail in sorted(account.first_dropped.items())
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: account.as_dict() for name, account in self.accounts.items()}

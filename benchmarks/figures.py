"""A promised figure beside what was measured: the lines that the benchmarks of the runtime print."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """`passed` is None where nothing was asked: a figure that helps to read the others."""

    name: str
    measured: float | str
    unit: str
    asked: str = ""
    passed: bool | None = None

    @property
    def verdict(self) -> str:
        return "" if self.passed is None else "pass" if self.passed else "MISSED"

    @property
    def value(self) -> str:
        number = self.measured
        text = f"{number:,.4g}" if isinstance(number, float) else str(number)
        return f"{text} {self.unit}".strip()


def told(name: str, measured: float | str, unit: str = "") -> Figure:
    return Figure(name, measured, unit)


def at_most(name: str, measured: float, limit: float, unit: str = "") -> Figure:
    return Figure(name, measured, unit, f"≤ {limit:,.4g}", measured <= limit)


def exactly(name: str, measured: float | str, wanted: float | str, unit: str = "") -> Figure:
    return Figure(name, measured, unit, f"{wanted}", measured == wanted)


def main(
    description: str | None,
    measure: Callable[[argparse.Namespace], Sequence[Figure]],
    **options: float,
) -> None:
    """Measure with `options`, which the command line may change, and print a line for each figure."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in options.items():
        parser.add_argument(
            f"--{name}", type=type(value), default=value, help=f"default {value:g}", metavar="N"
        )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = measure(arguments)
    load = round(os.getloadavg()[0], 2)
    if arguments.json:
        rows: list[dict[str, Any]] = [figure._asdict() for figure in figures]
        print(json.dumps({"figures": rows, "load_average": load}, indent=1))
        return
    for figure in figures:
        asked = f"asked {figure.asked}" if figure.asked else ""
        print(f"{figure.name:58} {figure.value:>16}  {asked:20} {figure.verdict}".rstrip())
    print(f"load average {load}")

"""How far estimates are off after calibration on another model: `python -m benchmarks.estimate_error`.

Ten bundles of different kinds are measured by what `fusedge bench` does. From the profile of each, the
parts of all others are estimated; every pair is judged: estimated over measured (p50, least batch) must
lie within 25 % either way.

The form of the model, and the probes that it is fitted to, were designed with the first seven bundles;
the last three were measured when nothing was changed any more. None of the rates is set by hand: they are
fitted anew each time, to the probes and the parts of the one bundle.

The exports need the extra `export`; they are kept in the folder that is given. On a busy machine the times
of two bundles hardly compare: the load average is printed with each.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks import estimate_models
from examples import fusion_model, plain_model
from fusedge.bundle.archive import Bundle
from fusedge.bundle.lookup import open_bundle
from fusedge.cli.machine_bench import Wanted, bench_machine
from fusedge.devices.targets.calibration.profile import MeasuredPart, Profile, rates_of
from fusedge.devices.targets.planning.roofline import estimate_part
from fusedge.export.part_work import part_work

DESIGN = ("driving", "room", "digits", "mobile", "residual", "sounds", "sequences")
HELD_OUT = ("squeeze", "spoken", "patches")
ASKED = 1.25


class Row(NamedTuple):
    """A part of `bundle`, estimated by the rates that were learnt with `known`."""

    known: str
    bundle: str
    part: str
    measured_s: float
    estimated_s: float
    paused_s: float
    estimated_paused_s: float

    @property
    def ratio(self) -> float:
        return self.estimated_s / self.measured_s

    @property
    def paused_ratio(self) -> float:
        """After a pause."""
        return self.estimated_paused_s / self.paused_s


def export(name: str, folder: Path) -> Bundle:
    """The bundle of that name, exported by the real exporter unless it lies there."""
    if name == "driving":
        return open_bundle(name)
    out = folder / f"{name}.fusedge"
    if not out.exists():
        weights, inputs = folder / f"{name}.safetensors", folder / f"{name}.npz"
        torch.manual_seed(0)
        factory, example = _written(name, weights, inputs)
        words = [factory, "--checkpoint", str(weights), "--precision", "fp32", "-o", str(out)]
        words += ["--example", str(inputs)] if example else []
        subprocess.run([sys.executable, "-m", "fusedge.cli", "export", *words], check=True)
    return Bundle(out)


def _written(name: str, weights: Path, inputs: Path) -> tuple[str, bool]:
    """Write random weights and an example; the factory, and whether the model is a plain one."""
    if name == "room":
        save_file(fusion_model.make()[0].state_dict(), weights)
        return "examples.fusion_model:make", False
    if name == "digits":
        plain_model.main(inputs.parent)
        (inputs.parent / "weights.safetensors").rename(weights)
        (inputs.parent / "inputs.npz").rename(inputs)
        return "examples.plain_model:make", True
    save_file(getattr(estimate_models, name)().state_dict(), weights)
    np.savez(inputs, **estimate_models.examples()[name])  # type: ignore[arg-type]
    return f"benchmarks.estimate_models:{name}", True


def measure(bundle: Bundle) -> Profile:
    """As `fusedge bench BUNDLE --provider cpu --precision fp32`."""
    benched = bench_machine(bundle, Wanted(["cpu"], "fp32"), "now", lambda what, share: None)
    return benched.profile


def rows(bundles: dict[str, Bundle], profiles: dict[str, Profile]) -> Iterator[Row]:
    """All ordered pairs."""
    for known, profile in profiles.items():
        rates = rates_of(profile, "cpu", "fp32")
        assert rates is not None
        for name, bundle in bundles.items():
            parts = {part.name: part for part in bundle.manifest.parts}
            for measured in profiles[name].parts if name != known else ():
                work = part_work(bundle, parts[measured.part], "fp32", measured.times[0].batch)
                estimated = estimate_part(work, rates, "cpu")
                assert estimated.seconds is not None and estimated.paused_s is not None
                measured_s, paused_s = _p50(measured), measured.paused
                assert paused_s is not None
                times = (measured_s, estimated.seconds, paused_s.p50_s, estimated.paused_s)
                yield Row(known, name, measured.part, *times)


def _p50(measured: MeasuredPart) -> float:
    if measured.problem:
        raise SystemExit(f"{measured.bundle}, {measured.part}: {measured.problem}")
    return measured.times[0].p50_s


def told(title: str, ratios: list[float]) -> bool:
    """Print what a set of estimates comes to; whether all are within what is asked."""
    errors = np.array([abs(math.log(ratio)) for ratio in ratios])
    median, most = np.exp(np.median(errors)), np.exp(errors.max())
    inside = float((errors <= math.log(ASKED)).mean())
    print(
        f"{title}: {len(ratios)} estimates, {inside:.1%} within {ASKED - 1:.0%}; "
        f"off by {median - 1:.1%} at the median, {most - 1:.1%} at most"
    )
    return inside == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the exported bundles")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    names = (*DESIGN, *HELD_OUT)
    bundles = {name: export(name, folder) for name in names}
    profiles = {}
    for name, bundle in bundles.items():
        profiles[name] = measure(bundle)
        load = profiles[name].conditions.load_average
        expected = profiles[name].calibrations[0].error - 1
        print(f"measured {name}: load average {load}, expected error {expected:.0%}", flush=True)
    found = list(rows(bundles, profiles))
    for title, after in (("one run after another", False), ("after a pause", True)):
        print(f"\n{title:22}{'measured':>11}   estimated over measured, calibrated on")
        print(" " * 36 + "".join(f"{name[:9]:>10}" for name in names))
        for bundle, part in dict.fromkeys((row.bundle, row.part) for row in found):
            mine = {row.known: row for row in found if (row.bundle, row.part) == (bundle, part)}
            ratios = {n: row.paused_ratio if after else row.ratio for n, row in mine.items()}
            cells = (f"{ratios[name]:10.2f}" if name in mine else f"{'':10}" for name in names)
            row = next(iter(mine.values()))
            measured_us = (row.paused_s if after else row.measured_s) * 1e6
            print(f"{bundle + ' ' + part:22}{measured_us:8.1f} us   " + "".join(cells))
    print()
    fresh = set(HELD_OUT)
    told("of bundles of the design", [row.ratio for row in found if row.bundle not in fresh])
    told("of bundles held out", [row.ratio for row in found if row.bundle in fresh])
    all_inside = told("all", [row.ratio for row in found])
    return 0 if told("after a pause", [row.paused_ratio for row in found]) and all_inside else 1


if __name__ == "__main__":
    sys.exit(main())

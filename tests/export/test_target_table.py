"""The table of targets is consistent and answers a mistyped name."""

from __future__ import annotations

import re

import pytest

from fusedge.bundle.errors import UnknownNameError
from fusedge.devices.targets.table import find_target, target_names


@pytest.mark.parametrize(
    ("name", "capability", "flavour"),
    [
        ("rtx-2080-ti", "7.5", "tensorrt_rtx"),
        ("rtx-3090", "8.6", "tensorrt_rtx"),
        ("rtx-4090", "8.9", "tensorrt_rtx"),
        ("rtx-5090", "12.0", "tensorrt_rtx"),
        ("jetson-agx-xavier-32gb", "7.2", "tensorrt"),
        ("jetson-orin-nano-8gb", "8.7", "tensorrt"),
        ("jetson-thor-t5000", "11.0", "tensorrt"),
        ("cpu", None, None),
    ],
)
def test_known_targets(name: str, capability: str | None, flavour: str | None) -> None:
    target = find_target(name)
    assert (target.compute_capability, target.flavour) == (capability, flavour)


def test_a_mistyped_target_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'rtx-4090'"):
        find_target("rtx4090")


def test_every_row_has_a_source_and_a_plain_name() -> None:
    for name in target_names():
        target = find_target(name)
        assert name == target.name
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert target.source
        assert (target.flavour is None) == (target.compute_capability is None)


def test_only_desktop_rtx_engines_are_built_elsewhere() -> None:
    assert {
        name.partition("-")[0] for name in target_names() if find_target(name).builds_anywhere
    } == {"rtx"}

"""Descriptions of modalities, as a bundle's manifest has them, for sources to be opened with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusedge.bundle.manifest import Channel, Modality
from fusedge.devices.capture.driving import CHANNELS


def _channels(units: Mapping[str, str]) -> tuple[Channel, ...]:
    return tuple(Channel(name=n, unit=u, minimum=-1e9, maximum=1e9) for n, u in units.items())


def series(
    name: str, units: Mapping[str, str], rate_hz: float = 10, max_hold_s: float = 0.5
) -> Modality:
    window_s = max(10, round(rate_hz / 10)) / rate_hz
    return Modality(
        name=name,
        kind="series",
        description=name,
        channels=_channels(units),
        rate_hz=rate_hz,
        window_s=window_s,
        hop_s=window_s,
        resample="hold",
        max_hold_s=max_hold_s,
        latency_s=0,
        lateness_s=0.1,
        max_age_s=30,
        return_windows=1,
        min_valid=0.5,
        prepare=(),
    )


def image(
    name: str, height: int, width: int, rate_hz: float = 10, channels: str = "rgb"
) -> Modality:
    return series(name, {}.fromkeys(channels, "1"), rate_hz).model_copy(
        update={"kind": "image", "height": height, "width": width, "window_s": 1 / rate_hz}
    )


def audio(name: str, rate_hz: float = 16_000, channels: int = 1) -> Modality:
    units = {f"channel_{number}": "1" for number in range(channels)}
    return series(name, units, rate_hz).model_copy(
        update={"kind": "audio", "resample": "contiguous"}
    )


def by_name(*modalities: Modality) -> dict[str, Modality]:
    return {modality.name: modality for modality in modalities}


def driving(*names: str) -> dict[str, Modality]:
    """Those of the driving sources, all where none is named."""
    return {name: series(name, CHANNELS[name]) for name in names or CHANNELS}


def named(**channels: Iterable[str]) -> dict[str, Modality]:
    """Series with channels of these names, without units of their own."""
    return {name: series(name, {}.fromkeys(names, "1")) for name, names in channels.items()}

"""The modalities that a driving source offers: names of their channels, with units."""

from __future__ import annotations

from collections.abc import Mapping

from fusedge.bundle.errors import FusedgeError, UnknownNameError

CHANNELS: Mapping[str, Mapping[str, str]] = {
    "imu": {
        "longitudinal_acceleration": "m/s2",
        "lateral_acceleration": "m/s2",
        "vertical_acceleration": "m/s2",
        "roll": "rad",
        "pitch": "rad",
        "yaw": "rad",
    },
    "gps": {"speed": "m/s", "course_change": "rad/s"},
    "road": {
        "lane_offset": "m",
        "lane_heading": "rad",
        "lane_width": "m",
        "lead_distance": "m",
        "lead_time": "s",
        "vehicles": "count",
    },
}


def select(uri: str, wanted: Mapping[str, tuple[str, ...]] | None) -> dict[str, list[int]]:
    """For each modality of `wanted` that is offered, the columns that give its channels, in order.
    None wants everything.

    A wanted modality that is not offered is left to another source. Raises FusedgeError where not
    one is offered, or where a modality lacks a wanted channel.
    """
    columns = {}
    if wanted is None:
        wanted = {modality: tuple(channels) for modality, channels in CHANNELS.items()}
    for modality, channels in wanted.items():
        if modality not in CHANNELS:
            continue
        offered = list(CHANNELS[modality])
        for channel in channels:
            if channel not in offered:
                raise UnknownNameError(f"channel of {modality} in {uri}", channel, offered)
        columns[modality] = [offered.index(channel) for channel in channels]
    if not columns:
        raise FusedgeError(
            f"offers none of the wanted modalities ({', '.join(wanted) or 'none wanted'})",
            where=uri,
            hint=f"it offers {', '.join(CHANNELS)}",
        )
    return columns


def channel_names(columns: Mapping[str, list[int]]) -> dict[str, tuple[str, ...]]:
    """The names of the columns of each modality."""
    offered = {modality: list(CHANNELS[modality]) for modality in columns}
    return {m: tuple(offered[m][column] for column in chosen) for m, chosen in columns.items()}


def channel_units(columns: Mapping[str, list[int]]) -> dict[str, tuple[str, ...]]:
    """Their units."""
    names = channel_names(columns)
    return {m: tuple(CHANNELS[m][name] for name in chosen) for m, chosen in names.items()}

"""A small trip in the layout of UAH-DriveSet, with made-up numbers."""

from __future__ import annotations

from pathlib import Path

from fusedge.devices.capture.driving import CHANNELS

NAME = "20200101120000-5km-D1-AGGRESSIVE-MOTORWAY"
WANTED = {modality: tuple(channels) for modality, channels in CHANNELS.items()}
FILES = {
    "RAW_ACCELEROMETERS": "{t:.2f} 1 0.9 0.9 0.9 0.100 -0.200 0.300 -1.500 0.010 3.000 \n",
    "RAW_GPS": "{t:.2f} 72.0 40.5 -3.3 600.0 4 5 260.0 18.0 0 0 0 \n",
    "PROC_LANE_DETECTION": "{t:.2f} 0.250 1.800 3.500 2\n",
    "PROC_VEHICLE_DETECTION": "{t:.2f} 30.00 1.50 2 72.0 \n",
}
PERIODS = {
    "RAW_ACCELEROMETERS": 0.1,
    "RAW_GPS": 1.0,
    "PROC_LANE_DETECTION": 0.04,
    "PROC_VEHICLE_DETECTION": 0.2,
}
EVENTS = "1.50 1 2 40.5 -3.3 20200101120001 \n2.50 3 1 40.5 -3.3 20200101120002 \n9.0 7 1 0 0 0\n\n"


def write_trip(folder: Path, seconds: float = 4.0, **texts: str | None) -> Path:
    """A trip of so many seconds from 1 s on; `texts` gives a file's text, or None to leave it out."""
    folder.mkdir(parents=True)
    for name, row in FILES.items():
        period = PERIODS[name]
        rows = (row.format(t=1 + period * number) for number in range(round(seconds / period)))
        text = texts.get(name, "".join(rows))
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    (folder / "EVENTS_INERTIAL.txt").write_text(EVENTS)
    return folder

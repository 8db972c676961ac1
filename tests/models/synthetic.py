"""Small made-up drives whose style shows in every modality."""

from __future__ import annotations

import numpy as np

from fusedge.bundle.sample import Recording, Series
from fusedge.bundle.window import NANOSECONDS
from fusedge.models.driving import LABELS

RATES = {"imu": (10, 6), "gps": (1, 2), "road": (25, 6)}


def recording(style: int, group: str, seed: int, seconds: int = 100) -> Recording:
    random = np.random.default_rng([seed, style])
    series = {}
    for name, (rate, channels) in RATES.items():
        stamps = np.arange(seconds * rate) * (NANOSECONDS // rate) + NANOSECONDS // 50
        values = np.abs(random.normal(0, 0.05 * 2.5**style, (len(stamps), channels)))
        if name == "road":
            values[:, 2] += 2  # a lane below 1 m is not believed
        series[name] = Series(stamps, values.astype(np.float32))
    condition = ("motorway", "secondary")[seed % 2]
    return Recording(f"{group}-{style}-{seed}", LABELS[style], group, condition, series)


def recordings() -> list[Recording]:
    return [recording(s, g, seed) for g, seed in (("A", 0), ("B", 1)) for s in range(3)]

"""Facial action units, as OpenFace gives them: for paired figures with the voice of the same takes."""

from __future__ import annotations

from dataclasses import dataclass

# 17 intensities of 0 to 5, 18 presences of 0 or 1 (OpenFace 2.0, Baltrusaitis et al. 2018).
ACTION_UNITS = 35


@dataclass(frozen=True)
class ActionUnitConfig:
    """`units` is how many there are."""

    units: int = ACTION_UNITS

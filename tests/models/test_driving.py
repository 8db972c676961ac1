"""The task's tables agree with each other."""

from __future__ import annotations

import pytest

from fusedge.bundle.errors import FusedgeError
from fusedge.models import driving
from fusedge.models.encoders import SeriesEncoder
from fusedge.models.fusion import FUSION_KINDS, FusionKind
from fusedge.models.fusion_model import FusionModel, ModelConfig, parameter_count
from tests.models.synthetic import recordings

MODALITIES = {modality.name: modality for modality in driving.modalities()}


def test_encoders_fit_the_modalities_and_remember_30_seconds() -> None:
    config = driving.model_config()
    assert list(config.encoders) == list(MODALITIES)
    for name, encoder in config.encoders.items():
        modality = MODALITIES[name]
        assert (encoder.channels, encoder.hop) == (len(modality.channels), modality.window_samples)
        assert all(0 <= c < encoder.channels for term in encoder.terms for c in term.channels)
        assert (encoder.short + encoder.long) * modality.hop_s == driving.WINDOW_S
        memory = SeriesEncoder(encoder).state_shapes()
        assert sum(a * b for a, b in memory.values()) < 20_000


def test_rules_and_mirror_name_channels_that_exist() -> None:
    for name, mirrored in driving.MIRRORED.items():
        assert set(mirrored) <= {c.name for c in MODALITIES[name].channels}
    for rule in driving.EVENTS:
        assert rule.channel in {c.name for c in MODALITIES[rule.modality].channels}


@pytest.mark.parametrize("fusion", [k for k in FUSION_KINDS if k != "late_product"])
def test_config_survives_json_types_and_is_small(fusion: FusionKind) -> None:
    config = driving.model_config(fusion)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert parameter_count(FusionModel(config)) < 50_000


def test_the_latency_of_gps_is_told_only_by_recordings_that_move_together() -> None:
    with pytest.raises(FusedgeError, match="cannot be told"):
        driving.gps_latency(recordings())

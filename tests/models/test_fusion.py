"""All kinds of fusion keep the contract of missing modalities."""

from __future__ import annotations

import itertools

import pytest
import torch

from fusedge.models.fusion import FUSION_KINDS, Fusion, FusionKind, make_fusion


def fusion(kind: FusionKind) -> Fusion:
    torch.manual_seed(1)
    module = make_fusion(kind, modalities=3, size=4, outputs=3, hidden=6, dropout=0.3).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("kind", FUSION_KINDS)
@pytest.mark.parametrize("shown", list(itertools.product((0.0, 1.0), repeat=3)))
@pytest.mark.parametrize("garbage", [0.0, 1e30, float("inf"), float("nan")])
def test_an_absent_modality_cannot_influence_the_logits(
    kind: FusionKind, shown: tuple[float, ...], garbage: float
) -> None:
    module = fusion(kind)
    generator = torch.Generator().manual_seed(0)
    embeddings = [torch.randn(2, 4, generator=generator) for _ in range(3)]
    presence = torch.tensor([shown, shown])
    age = torch.rand(2, 3, generator=generator)
    spoilt = [
        e if p else torch.full_like(e, garbage) for e, p in zip(embeddings, shown, strict=True)
    ]
    spoilt_age = torch.where(presence > 0, age, torch.full_like(age, 99.0))
    expected = module(embeddings, presence, age)
    assert torch.isfinite(expected).all()
    assert torch.equal(module(spoilt, presence, spoilt_age), expected)


@pytest.mark.parametrize("kind", FUSION_KINDS)
def test_a_present_modality_matters(kind: FusionKind) -> None:
    module = fusion(kind)
    embeddings = [torch.randn(2, 4) for _ in range(3)]
    everything = module(embeddings, torch.ones(2, 3), torch.zeros(2, 3))
    for column in range(3):
        presence = torch.ones(2, 3)
        presence[:, column] = 0
        assert not torch.allclose(module(embeddings, presence, torch.zeros(2, 3)), everything)


@pytest.mark.parametrize("kind", FUSION_KINDS)
def test_age_matters_up_to_its_limit(kind: FusionKind) -> None:
    module = fusion(kind)
    embeddings = [torch.randn(1, 4) for _ in range(3)]
    fresh, old, older = (
        module(embeddings, torch.ones(1, 3), torch.full((1, 3), age)) for age in (0.0, 10.0, 50.0)
    )
    assert not torch.allclose(fresh, old)
    assert torch.equal(old, older)

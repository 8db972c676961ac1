"""All kinds of fusion keep the contract of missing modalities."""

from __future__ import annotations

import itertools

import pytest
import torch

from fusedge.bundle.errors import FusedgeError
from fusedge.models.fusion import FUSION_KINDS, Fusion, FusionKind, make_fusion


def fusion(kind: FusionKind) -> Fusion:
    torch.manual_seed(1)
    size = 3 if kind == "late_product" else 4
    module = make_fusion(kind, modalities=3, size=size, outputs=3, hidden=6, dropout=0.3).eval()
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
    embeddings = [torch.randn(2, module.size, generator=generator) for _ in range(3)]
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
    embeddings = [torch.randn(2, module.size) for _ in range(3)]
    everything = module(embeddings, torch.ones(2, 3), torch.zeros(2, 3))
    for column in range(3):
        presence = torch.ones(2, 3)
        presence[:, column] = 0
        assert not torch.allclose(module(embeddings, presence, torch.zeros(2, 3)), everything)


@pytest.mark.parametrize("kind", FUSION_KINDS)
def test_age_matters_up_to_its_limit(kind: FusionKind) -> None:
    module = fusion(kind)
    embeddings = [torch.randn(1, module.size) for _ in range(3)]
    fresh, old, older = (
        module(embeddings, torch.ones(1, 3), torch.full((1, 3), age)) for age in (0.0, 10.0, 50.0)
    )
    assert not torch.allclose(fresh, old)
    assert torch.equal(old, older)


@torch.no_grad()
def test_posteriors_are_multiplied_and_one_that_is_alone_says_what_it_says() -> None:
    module = fusion("late_product")
    for parameter in (module.missing, module.ageing):
        parameter.zero_()
    posteriors = [torch.randn(50, 3).softmax(dim=1) for _ in range(3)]
    prior = module.prior.softmax(dim=0)  # type: ignore[operator, union-attr]
    for shown in itertools.product((0.0, 1.0), repeat=3):
        presence, expected = torch.tensor([shown]).expand(50, 3), prior.expand(50, 3)
        for seen, posterior in zip(shown, posteriors, strict=True):
            expected = expected * (posterior / prior if seen else 1)
        expected = expected / expected.sum(dim=1, keepdim=True)
        louder = [3 + posterior.log() for posterior in posteriors]  # which does not count
        found = module(louder, presence, torch.zeros(50, 3)).softmax(dim=1)
        torch.testing.assert_close(found, expected)
        if sum(shown) == 1:
            torch.testing.assert_close(found, posteriors[shown.index(1.0)])


def test_what_is_no_posterior_is_not_multiplied() -> None:
    with pytest.raises(FusedgeError, match="posteriors of 3 labels, not embeddings of 4 numbers"):
        make_fusion("late_product", modalities=3, size=4, outputs=3, hidden=6, dropout=0.3)

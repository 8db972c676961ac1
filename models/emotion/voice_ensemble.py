"""The voice's ensemble: for every group of actors a member that has not heard it, and some that heard all.

The former say, of everyone, what a network says of a person that it has not heard; the head is trained
on that. All of them together are the voice's classifier.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import write_whole
from fusedge.models.emotion.takes import Take, fold_of
from fusedge.models.emotion.voice_encoder import (
    VoiceClassifier,
    VoiceConfig,
    join_classifiers,
    load_voice,
    voice_bytes,
)
from fusedge.models.emotion.voice_training import Spectrograms, VoiceRecipe, hear, train_member

Tell = Callable[[str, int, int, float], None]
"""Called with what is trained, the step that is done, the number of steps, and the loss."""


@dataclass(frozen=True)
class EnsembleRecipe:
    """`whole` is how many members hear all groups."""

    config: VoiceConfig = field(default_factory=VoiceConfig)
    member: VoiceRecipe = field(default_factory=VoiceRecipe)
    whole: int = 0


@dataclass(frozen=True)
class VoiceEnsemble:
    """`honest` by the group that the member has not heard."""

    honest: Mapping[int, VoiceClassifier]
    whole: tuple[VoiceClassifier, ...]

    @cached_property
    def classifier(self) -> VoiceClassifier:
        """All of them as one."""
        return join_classifiers([*self.honest.values(), *self.whole])

    @torch.no_grad()
    def said_of(self, takes: Sequence[Take], last_hops: int) -> Tensor:
        """Logits `[N, last_hops, 8]` of the takes' last hops, by a member that has not heard the actor."""
        said = []
        for take in takes:
            member = self.honest[fold_of(take.actor)]
            said.append(member(hear(member, take.wave)[-last_hops:]))
        return torch.stack(said)


def train_ensemble(
    takes: Sequence[Take],
    folder: Path,
    recipe: EnsembleRecipe,
    tell: Tell = lambda what, step, steps, loss: None,
    without: frozenset[int] = frozenset(),
) -> VoiceEnsemble:
    """Train on the takes of all groups but those in `without`; members stay in `folder`, found again.

    A member depends on what it has not heard, not on `without`: ensembles share those that suit both.
    """
    groups = np.array([fold_of(take.actor) for take in takes])
    heard = sorted(set(groups.tolist()) - without)
    if len(heard) < 2:
        raise FusedgeError(
            f"takes of {len(heard)} groups of actors are too few to train on",
            hint="takes of at least two of the five folds are needed",
        )
    digest = hashlib.sha256(repr(recipe.config).encode())
    for take in takes:
        digest.update(f"{take.actor} {take.label}".encode() + take.wave.tobytes())
    wanted = [(without | {group}, 0) for group in heard]
    wanted += [(without, number) for number in range(1, recipe.whole + 1)]
    spectrograms: Spectrograms | None = None
    members = []
    for place, (left_out, number) in enumerate(wanted, 1):
        seed = recipe.member.seed + 100 * number + sum(1 << group for group in left_out)
        own = replace(recipe.member, seed=seed)
        key = f"{digest.hexdigest()} {own} {sorted(left_out)}"
        name = "-".join(map(str, sorted(left_out))) or "none"
        path = folder / f"voice-without-{name}-{number}.safetensors"
        if path.is_file():
            found, notes = load_voice(path)
            if notes.get("key") == key:
                members.append(found)
                continue
        spectrograms = spectrograms or Spectrograms(takes, groups.tolist())
        chosen = np.flatnonzero(~np.isin(groups, sorted(left_out)))
        told = partial(tell, f"voice {place} of {len(wanted)}")
        member = train_member(spectrograms, chosen, recipe.config, own, told)
        write_whole(path, voice_bytes(member, {"key": key}))
        members.append(member)
    count = len(heard)
    return VoiceEnsemble(dict(zip(heard, members[:count], strict=True)), tuple(members[count:]))

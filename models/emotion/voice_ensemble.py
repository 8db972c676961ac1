"""The voice's ensemble: for every group of actors a member that has not heard it, and some that heard all.

The former say, of everyone, what a network says of a person that it has not heard; the head is trained
on that. All of them together are the voice's classifier. A member that leaves out two groups is trained
from nothing; one that leaves out fewer goes on from one that leaves out one more, which costs a third, and
the members of cross-validation are those of the ensemble.
"""

from __future__ import annotations

import hashlib
import math
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
from fusedge.models.emotion.voice_training import (
    Progress,
    Spectrograms,
    VoiceRecipe,
    hear,
    told_of,
    train_member,
)

Tell = Callable[[str, int, int, float], None]
"""Called with what is trained, the step that is done, the number of steps, and the loss."""

_FROM_NOTHING = 2  # groups: a member that leaves out so many is trained from nothing


@dataclass(frozen=True)
class EnsembleRecipe:
    """`whole` is how many members hear all groups; a member goes on with more groups for a share `further`
    of the steps, at half the learning rate, and tells the label alone.
    """

    config: VoiceConfig = field(default_factory=VoiceConfig)
    member: VoiceRecipe = field(default_factory=VoiceRecipe)
    further: float = 0.3
    whole: int = 2

    def seeded(self, seed: int) -> EnsembleRecipe:
        """The recipe of another run, none of whose members has the seed of one of this."""
        member = replace(self.member, seed=self.member.seed + 1000 * seed)
        return replace(self, member=member)


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
    wanted = [(without | {group}, 0) for group in heard]
    wanted += [(without, number) for number in range(recipe.whole)]
    training = _Training(takes, folder, recipe)
    members = [
        training.member(left_out, number, partial(tell, f"voice {place} of {len(wanted)}"))
        for place, (left_out, number) in enumerate(wanted, 1)
    ]
    count = len(heard)
    return VoiceEnsemble(dict(zip(heard, members[:count], strict=True)), tuple(members[count:]))


class _Training:
    """Members by the groups that they have not heard and a number, from the folder or trained."""

    def __init__(self, takes: Sequence[Take], folder: Path, recipe: EnsembleRecipe) -> None:
        self.takes, self.folder, self.recipe = takes, folder, recipe
        self.groups = np.array([fold_of(take.actor) for take in takes])
        digest = hashlib.sha256(repr(recipe.config).encode())
        for take in takes:
            digest.update(f"{take.actor} {take.label}".encode() + take.wave.tobytes())
            digest.update(told_of(take).tobytes())
        self.digest = digest.hexdigest()

    @cached_property
    def spectrograms(self) -> Spectrograms:
        return Spectrograms(self.takes, self.groups.tolist())

    def member(self, left_out: frozenset[int], number: int, tell: Progress) -> VoiceClassifier:
        """The member, and before it the one that it goes on from, if they are not there yet."""
        key = self._key(left_out, number)
        name = "-".join(map(str, sorted(left_out))) or "none"
        path = self.folder / f"voice-without-{name}-{number}.safetensors"
        if path.is_file():
            found, notes = load_voice(path)
            if notes.get("key") == key:
                return found
        own, more = self._way(left_out, number)
        start = self.member(more, 0, tell) if more else None
        chosen = np.flatnonzero(~np.isin(self.groups, sorted(left_out)))
        member = train_member(self.spectrograms, chosen, self.recipe.config, own, tell, start)
        write_whole(path, voice_bytes(member, {"key": key}))
        return member

    def _way(
        self, left_out: frozenset[int], number: int
    ) -> tuple[VoiceRecipe, frozenset[int] | None]:
        """How a member is trained, and what the one has left out that it goes on from, if any."""
        others = sorted(set(self.groups.tolist()) - left_out)
        own, more = self.recipe.member, None
        if len(left_out) < _FROM_NOTHING and len(others) > 1:
            more = left_out | {others[number % len(others)]}
            own = replace(
                own,
                steps=math.ceil(own.steps * self.recipe.further),
                learning_rate=own.learning_rate / 2,
                telling=0.0,
            )
        seed = own.seed + 100 * number + sum(1 << group for group in left_out)
        return replace(own, seed=seed), more

    def _key(self, left_out: frozenset[int], number: int) -> str:
        """Changes with all that the member's weights depend on."""
        own, more = self._way(left_out, number)
        start = self._key(more, 0) if more else ""
        text = f"{self.digest} {own} {sorted(left_out)} {start}"
        return hashlib.sha256(text.encode()).hexdigest()

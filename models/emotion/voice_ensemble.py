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

from fusedge.models.emotion.takes import Take, fold_of, refuse_few_groups
from fusedge.models.emotion.voice_encoder import (
    VoiceClassifier,
    VoiceConfig,
    join_classifiers,
    load_voice,
    voice_bytes,
)
from fusedge.models.emotion.voice_training import (
    VARIANTS,
    Spectrograms,
    VoiceRecipe,
    basis,
    hear,
    told_of,
    train_member,
)
from fusedge.models.kept_model import keep_model, kept_model
from fusedge.models.training import Progress

Tell = Callable[[str, int, int, float], None]
"""Called with what is trained, the step that is done, the number of steps, and the loss."""

_FROM_NOTHING = 2  # groups: a member that leaves out so many is trained from nothing


@dataclass(frozen=True)
class EnsembleRecipe:
    """`whole` is how many members hear all groups; a member goes on with more groups for a share `further`
    of the steps, at half the learning rate, and tells the label alone. Of each take there are `variants`.

    `sharper` is the temperature of all members together, of people that none has heard, over that of one:
    the geometric mean of 0.62, 0.89, 0.91, 0.68 and 0.96 in the folds of RAVDESS.
    """

    config: VoiceConfig = field(default_factory=VoiceConfig)
    member: VoiceRecipe = field(default_factory=VoiceRecipe)
    further: float = 0.3
    whole: int = 2
    sharper: float = 0.8
    variants: int = VARIANTS

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
) -> VoiceEnsemble:
    """Train on the takes of all groups; members stay in `folder`, found again. Raises FusedgeError."""
    return Members(takes, folder, recipe, tell).ensemble()


class Members:
    """Members by the groups of `takes` that they have not heard and a number, from the folder or trained.

    One that is damaged is trained again, with a warning in the log. Raises FusedgeError where one cannot be
    kept.
    """

    def __init__(
        self,
        takes: Sequence[Take],
        folder: Path,
        recipe: EnsembleRecipe,
        tell: Tell = lambda what, step, steps, loss: None,
    ) -> None:
        self.takes, self.folder, self.recipe, self.tell = takes, folder, recipe, tell
        self.groups = np.array([fold_of(take.actor) for take in takes])
        digest = hashlib.sha256(f"{recipe.config} {recipe.variants} {basis()}".encode())
        for take in takes:
            digest.update(f"{take.actor} {take.label}".encode() + take.wave.tobytes())
            digest.update(told_of(take).tobytes())
        self.digest = digest.hexdigest()

    def ensemble(self, without: frozenset[int] = frozenset()) -> VoiceEnsemble:
        """That of all groups but those in `without`.

        A member depends on what it has not heard, not on `without`: ensembles share those that suit both.
        Raises FusedgeError where fewer than two groups are left.
        """
        heard = sorted(set(self.groups.tolist()) - without)
        refuse_few_groups(heard, least=2)
        wanted = [(without | {group}, 0) for group in heard]
        wanted += [(without, number) for number in range(self.recipe.whole)]
        members = [
            self._member(left_out, number, partial(self.tell, f"voice {place} of {len(wanted)}"))
            for place, (left_out, number) in enumerate(wanted, 1)
        ]
        count = len(heard)
        return VoiceEnsemble(dict(zip(heard, members[:count], strict=True)), tuple(members[count:]))

    @cached_property
    def _spectrograms(self) -> Spectrograms:
        return Spectrograms(self.takes, self.groups.tolist(), self.recipe.variants)

    def _member(self, left_out: frozenset[int], number: int, tell: Progress) -> VoiceClassifier:
        """The member, and before it the one that it goes on from, if they are not there yet."""
        key = self._key(left_out, number)
        name = "-".join(map(str, sorted(left_out))) or "none"
        path = self.folder / f"voice-without-{name}-{number}.safetensors"
        found = kept_model(path, key, load_voice, voice_bytes)
        if found is not None:
            return found
        own, more = self._way(left_out, number)
        start = self._member(more, 0, tell) if more else None
        chosen = np.flatnonzero(~np.isin(self.groups, sorted(left_out)))
        member = train_member(self._spectrograms, chosen, self.recipe.config, own, tell, start)
        keep_model(path, key, member, voice_bytes)
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
        """Changes with all that the member's weights depend on, but for the code: with each change of that,
        hours of training would be lost.
        """
        own, more = self._way(left_out, number)
        start = self._key(more, 0) if more else ""
        text = f"{self.digest} {own} {sorted(left_out)} {start}"
        return hashlib.sha256(text.encode()).hexdigest()

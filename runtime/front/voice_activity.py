"""Whether somebody speaks, step by step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import BundleError
from fusedge.bundle.manifest import Part
from fusedge.runtime.front.faces import Run
from fusedge.runtime.part_tensors import zeros


class VoiceActivity:
    """Contract: the probability of speech in each step of sound, by a part that takes the step and the end
    of what was before it as float32 `[batch, context + step]`, and a state that it gives back (an
    output of an input's shape). A step is the sound between two runs at the part's rate.

    Raises BundleError for a part of other inputs and outputs.
    """

    def __init__(self, part: Part, run: Run, rate_hz: float) -> None:
        self._run, self._part = run, part
        state_of = {spec.shape: place for place, spec in enumerate(part.outputs)}
        sound = [spec for spec in part.inputs if spec.shape not in state_of]
        self._states = {
            spec.name: state_of[spec.shape] for spec in part.inputs if spec.shape in state_of
        }
        chances = [n for n in range(len(part.outputs)) if n not in self._states.values()]
        self.step = round(rate_hz / (part.rate_hz or rate_hz))
        shape = sound[0].shape if len(sound) == 1 else ()
        length = shape[1] if len(shape) == 2 else None
        if not isinstance(length, int) or not 0 < self.step <= length or len(chances) != 1:
            raise BundleError(
                f"part {part.name} tells no speech in sound at {rate_hz:g} Hz",
                hint="it takes sound [batch, context + step] and a state, and gives a probability "
                "and the state, at the sound's rate over the step",
            )
        self._sound, self._chance, self._length = sound[0].name, chances[0], length
        self.reset()

    def reset(self) -> None:
        """Forget the sound so far."""
        self._feeds = zeros(self._part, 1)
        self._recent = np.zeros(self._length, np.float32)

    def probability(self, sound: NDArray[np.float32]) -> float:
        """Of speech in the next step, float32 `[step]`. What is not finite counts as silence, also in what
        the part gives: its state would keep it for ever.
        """
        kept = self._recent[self.step :]
        new = np.nan_to_num(np.clip(sound, -1, 1), copy=False, nan=0.0)
        self._recent = np.concatenate([kept, new], dtype=np.float32)
        outputs = self._run({**self._feeds, self._sound: self._recent[None]})
        chance = float(outputs[self._chance].reshape(-1)[0])
        states = {name: outputs[place] for name, place in self._states.items()}
        if not np.isfinite(chance) or not all(np.isfinite(s).all() for s in states.values()):
            self.reset()
            return 0.0
        self._feeds |= states
        return chance

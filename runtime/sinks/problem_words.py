"""In words, why a decision has no label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fusedge.runtime.decision import NOTHING_PRESENT, Decision
from fusedge.runtime.front.sighting import FacesSeen, Sighting, SpeechHeard
from fusedge.runtime.front.speech_front import BEGIN

PROBLEMS = {
    NOTHING_PRESENT: "nothing is present: nothing seen, heard or measured",
    "not_finite": "the head's result is not finite",
    "part_failed": "the head has failed and waits to be loaded again",
    "hangs": "the head did not come back in time",
    "raised": "the head's run failed",
}
NOBODY = {
    frozenset(("largest_face", "speech")): "nobody is seen or heard",
    frozenset(("largest_face",)): "nobody is seen",
    frozenset(("speech",)): "nobody is heard",
}
"""That nothing is present, by the kinds of a bundle's front ends, where they see nothing …"""
UNUSED_FACE = "a face is seen, but late, too small or cut off"  # … and where they do
UNUSED_VOICE = "a voice is heard, but late or too briefly"


def why_undecided(
    decision: Decision, fronts: Mapping[str, str], seen: Iterable[Sighting] = ()
) -> str:
    """A decision's problem; never that nobody is there beside a face that was seen.

    `fronts` are the kinds of the bundle's front ends by modality; `seen` is what they saw besides what
    the decision has.
    """
    kinds = frozenset(fronts.values())
    if decision.problem != NOTHING_PRESENT or kinds not in NOBODY:
        return PROBLEMS.get(decision.problem, f"no result: {decision.problem}")
    sightings = [*seen, *(share.front for share in decision.modalities.values())]
    if any(isinstance(one, FacesSeen) and one.faces for one in sightings):
        return UNUSED_FACE
    if any(isinstance(one, SpeechHeard) and one.probability >= BEGIN for one in sightings):
        return UNUSED_VOICE
    return NOBODY[kinds]

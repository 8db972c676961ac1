"""The front ends of a session: their parts, what they saw, and the sources that they stand behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Manifest, Modality, Part
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.devices.capture.address import Wanted
from fusedge.devices.capture.source import Opener, Source
from fusedge.runtime.front.face_front import FaceFront, FaceTally
from fusedge.runtime.front.faces import FaceDetector
from fusedge.runtime.front.sighting import Sighting, Sightings, View
from fusedge.runtime.front.speech_front import SpeechFront, SpeechTally
from fusedge.runtime.front.voice_activity import VoiceActivity
from fusedge.runtime.part import Backend

NOTHING_SEEN = frozenset(
    ("no_face", "face_too_small", "face_cut_off", "superseded", "invalid", "incomplete_window")
)
"""Why nothing of a modality is used where a front end has nothing to give."""

FACES = "largest_face"


class Front(Protocol):
    """Makes samples of one modality of what a device gives, in the order in which it comes."""

    def take(self, item: Sample | Rejection) -> Iterable[Sample | Rejection]:
        """What comes out once `item` has come in."""

    def end(self, arrival_ns: int) -> Iterable[Sample | Rejection]:
        """What was held back, where the source has ended."""


class FrontEnds:
    """Contract: `opener` makes sources whose modalities have a front end give what the encoder takes; what
    has been through it already, in a recording, passes as it is. The parts are loaded at once, and
    again after a run that raised, which the source then raises: it is opened again, as after any fault.
    `latency_s` replaces the manifest's, by modality.

    Raises what `load` raises, and BundleError for a part that is no such detector.
    """

    def __init__(
        self,
        manifest: Manifest,
        load: Callable[[Part], Backend],
        latency_s: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._networks = _networks(manifest)
        parts = {part.modality: part for part in manifest.parts if part.kind == "front"}
        self._lanes = {
            spec.name: _Lane(
                spec.with_latency(latency_s.get(spec.name, spec.latency_s)), parts[spec.name], load
            )
            for spec in manifest.modalities
            if spec.front is not None
        }

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that they run."""
        return tuple(lane.part for lane in self._lanes.values())

    @property
    def kinds(self) -> dict[str, str]:
        """By modality."""
        return {name: lane.kind for name, lane in self._lanes.items()}

    def saw_nobody(self, name: str, dropped: Iterable[str]) -> bool:
        """Whether a modality of which nothing was used had nothing to give, for nobody was seen or heard.

        Its own front end knows, whatever else was dropped; of a recording, which has been through one, the
        reasons tell.
        """
        lane = self._lanes.get(name)
        return lane is not None and (lane.tally.fruitless or NOTHING_SEEN.issuperset(dropped))

    @property
    def providers(self) -> dict[str, str]:
        """What runs each part."""
        return {lane.part.name: lane.provider for lane in self._lanes.values()}

    def check_same(self, manifest: Manifest) -> None:
        """Raise FusedgeError for a bundle with other front ends, which the open sources have not, or whose
        modalities do not go with these. At which precision and by which engine they run is of no account.
        """
        if _networks(manifest) != self._networks:
            raise FusedgeError(
                "it has other front ends than the running bundle", hint="end the session for it"
            )
        for name, lane in self._lanes.items():
            lane.front(manifest.modality(name))

    def opener(self, open_uri: Opener) -> Opener:
        """As `open_uri`, with the front ends behind the sources."""
        if not self._lanes:
            return open_uri

        def open_fronted(uri: str, wanted: Wanted, now_ns: Callable[[], int]) -> Source:
            return self.behind(open_uri(uri, wanted, now_ns))

        return open_fronted

    def behind(self, source: Source) -> Source:
        """The source with the front ends of its modalities behind it."""
        prepared = getattr(source, "prepared", ())
        fronts = {
            name: self._lanes[name].front(self._lanes[name].spec)
            for name in source.modalities
            if name in self._lanes and name not in prepared
        }
        return FrontedSource(source, fronts, self._lanes) if fronts else source

    def at(self, time_ns: int) -> dict[str, Sighting]:
        """What each has seen by `time_ns`, where that is not older than the modality may be."""
        seen = {
            name: lane.sightings.at(time_ns, to_ns(lane.spec.max_age_s))
            for name, lane in self._lanes.items()
        }
        return {name: sighting for name, sighting in seen.items() if sighting is not None}

    @property
    def view(self) -> Callable[[], View | None] | None:
        """What gives the newest frame in which faces are looked for; None without such a front end."""
        views = [lane.sightings.view for lane in self._lanes.values() if lane.kind == FACES]
        return views[0] if views else None

    def report(self) -> dict[str, Any]:
        """For the summary."""
        return {
            name: {"kind": lane.kind, **lane.tally.as_dict()} for name, lane in self._lanes.items()
        }


def _networks(manifest: Manifest) -> dict[str, tuple[object, ...]]:
    """Of each modality's front end what it is and what it computes: what its part takes and gives, and the
    content of the graph at fp32, from which those at other precisions and all engines are made.
    """
    parts = {part.name: part for part in manifest.parts}
    found: dict[str, tuple[object, ...]] = {}
    for spec in manifest.modalities:
        if spec.front is not None:
            part = parts[spec.front.part]
            graph = min(part.graphs, key=lambda graph: graph.precision != "fp32")
            content = manifest.files[graph.file].sha256
            found[spec.name] = (spec.front.kind, part.rate_hz, part.inputs, part.outputs, content)
    return found


class _Lane:
    """One modality's front end: its part, and what outlives the sources that it stands behind."""

    def __init__(self, spec: Modality, part: Part, load: Callable[[Part], Backend]) -> None:
        assert spec.front is not None
        self.spec, self.part, self.kind = spec, part, spec.front.kind
        self.sightings = Sightings()
        self.tally: FaceTally | SpeechTally = (
            FaceTally() if self.kind == FACES else SpeechTally(spec.rate_hz)
        )
        self._load = load
        self._backend: Backend | None = load(part)
        self.provider = self._backend.provider
        self.front(spec)  # a bundle that does not fit is told of before a source is opened

    def front(self, spec: Modality) -> Front:
        """A front end that has seen nothing yet; raises BundleError where it is none for the modality."""
        if isinstance(self.tally, FaceTally):
            detector = FaceDetector(self.part, self.run)
            return FaceFront(spec, detector, self.tally, self.sightings)
        activity = VoiceActivity(self.part, self.run, spec.rate_hz)
        return SpeechFront(spec, activity, self.tally, self.sightings)

    def run(self, feeds: dict[str, Any]) -> list[NDArray[Any]]:
        """Run the part."""
        backend = self._backend or self._load(self.part)
        self._backend = None  # one that raises is not to be trusted again
        outputs = backend.run(feeds)
        self._backend = backend
        return outputs


class FrontedSource:
    """A source with front ends behind it."""

    def __init__(
        self, source: Source, fronts: Mapping[str, Front], lanes: Mapping[str, _Lane]
    ) -> None:
        self._source, self._fronts = source, fronts
        self.uri, self.modalities = source.uri, source.modalities
        self.live, self.warnings = source.live, source.warnings
        self.units = source.units
        own = {name: tuple(c.name for c in lanes[name].spec.channels) for name in fronts}
        self.channels = {**source.channels, **own}

    def samples(self) -> Iterator[Sample | Rejection]:
        """See Source."""
        arrival_ns = 0
        for item in self._source.samples():
            arrival_ns = item.arrival_ns
            front = self._fronts.get(item.modality)
            if front is None:
                yield item
            else:
                yield from front.take(item)
        for front in self._fronts.values():
            yield from front.end(arrival_ns)

    def close(self) -> None:
        """See Source."""
        self._source.close()

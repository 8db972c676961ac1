"""ezmsg in one process: three publishing units and a fusion unit.

Frames have a leaky input of one message, which is what ezmsg has for a live view; sound and IMU must
not lose any, so theirs push back. Model and sink run in a thread, for they would block the event
loop, and with it the sources.
"""

from __future__ import annotations

import asyncio

import ezmsg.core as ez
from workload import MODALITIES, Event, Run


def stream(run: Run) -> None:
    def source(modality: str) -> ez.Unit:
        class Source(ez.Unit):
            OUTPUT = ez.OutputStream(Event)

            @ez.publisher(OUTPUT)
            async def play(self):
                run.begin()
                for event in run.events:
                    if event.modality == modality:
                        await asyncio.sleep(run.wait_s(event))
                        if run.over():
                            return
                        run.put(event)
                        yield self.OUTPUT, event

        return Source()

    class Fusion(ez.Unit):
        VIDEO = ez.InputStream(Event, leaky=True, max_queue=1)
        AUDIO = ez.InputStream(Event)
        IMU = ez.InputStream(Event)

        @ez.subscriber(VIDEO)
        async def on_video(self, event: Event) -> None:
            await self.handle(event)

        @ez.subscriber(AUDIO)
        async def on_audio(self, event: Event) -> None:
            await self.handle(event)

        @ez.subscriber(IMU)
        async def on_imu(self, event: Event) -> None:
            await self.handle(event)

        async def handle(self, event: Event) -> None:
            if run.take(event.modality, event.index, event.data):
                if run.scenario == "handover":  # no model: nothing that blocks
                    run.emit(*run.fuse())
                else:
                    await asyncio.to_thread(lambda: run.emit(*run.fuse()))

    class End(ez.Unit):
        @ez.task
        async def end(self) -> None:
            await asyncio.to_thread(run.wait_for_end)
            raise ez.NormalTermination

    sources = {name: source(name) for name in MODALITIES}
    fusion = Fusion()
    inputs = {"video": fusion.VIDEO, "audio": fusion.AUDIO, "imu": fusion.IMU}
    ez.run(
        components={**sources, "fusion": fusion, "end": End()},
        connections=tuple((sources[name].OUTPUT, inputs[name]) for name in MODALITIES),
        force_single_process=True,
    )

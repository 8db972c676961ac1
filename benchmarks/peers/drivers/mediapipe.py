"""A MediaPipe graph from Python, its default way: the three streams are synchronised by stamp.

MediaPipe runs no ONNX, and Python has no calculators of its own, so the graph aligns the streams and
the callback of the frames runs the model. In the variant `latest` the streams are not aligned, and a
FlowLimiter lets one frame through at a time, told by the callback when it is done. (A callback holds
up the node that it observes, so another node stands between it and the limiter.)
"""

from __future__ import annotations

import mediapipe
from mediapipe.python import packet_creator, packet_getter
from workload import MODALITIES, Event, Run

STREAMS = "\n".join(
    f'input_stream: "{name}" output_stream: "{name}_out"' for name in reversed(MODALITIES)
)
ALIGNED = STREAMS + f'\nnode {{ calculator: "PassThroughCalculator" {STREAMS} }}'
LATEST = (
    STREAMS
    + """
input_stream: "done"
node {
  calculator: "FlowLimiterCalculator"
  input_stream: "video" input_stream: "FINISHED:done" output_stream: "video_one"
}
node { calculator: "PassThroughCalculator" input_stream: "video_one" output_stream: "video_out" }
node { calculator: "PassThroughCalculator" input_stream: "audio" output_stream: "audio_out" }
node { calculator: "PassThroughCalculator" input_stream: "imu" output_stream: "imu_out" }
"""
)


def stream(run: Run) -> None:
    latest = run.spec["variant"] == "latest"
    graph = mediapipe.CalculatorGraph(graph_config=LATEST if latest else ALIGNED)
    index = {(e.modality, round(e.stamp_s * 1e6)): e.index for e in run.events}
    waiting: list[Event] = []
    bounds = dict.fromkeys(MODALITIES, -1.0)

    def observe(name: str, packet) -> None:
        modality, stamp_us = name.removesuffix("_out"), packet.timestamp.value
        if modality == "video":
            data = packet_getter.get_image_frame(packet).numpy_view()
        else:
            data = packet_getter.get_matrix(packet)[:, 0]
        run.handle(modality, index[modality, stamp_us], data)
        if latest and modality == "video":
            graph.add_packet_to_input_stream("done", packet_creator.create_bool(True).at(stamp_us))

    def push(event: Event) -> None:
        if event.modality == "video":
            packet = packet_creator.create_image_frame(
                image_format=mediapipe.ImageFormat.SRGB, data=event.data
            )
        else:
            packet = packet_creator.create_matrix(event.data[:, None])
        if not latest:
            settle(event)
        graph.add_packet_to_input_stream(event.modality, packet.at(round(event.stamp_s * 1e6)))

    def settle(event: Event) -> None:
        """A frame needs the other streams up to its stamp: the last of them is what it waited for."""
        bounds[event.modality] = event.stamp_s
        if event.modality == "video":
            waiting.append(event)
        settled = min(bounds.values())
        while waiting and waiting[0].stamp_s <= settled:
            frame = waiting.pop(0)
            run.put_ns["video"][frame.index] = run.put_ns[event.modality][event.index]

    for name in MODALITIES:
        graph.observe_output_stream(f"{name}_out", observe)
    graph.start_run()
    run.feed(push)
    run.wait_for_end()
    try:
        graph.close()
    except Exception as error:
        run.errors.append(f"close: {error}")
    graph = None  # the callbacks hold it, it holds the callbacks, and the collector cannot see that

"""Roboflow inference: an InferencePipeline with custom logic over a live source.

The source is a producer of the same arrays at the same times as for the others, so no decoding is in
the figures; the pipeline takes it as it takes a camera, dropping what is old. It has no input for
sound or an IMU: side buffers hold their newest samples. Predictions reach the sink in a thread of
its own.
"""

from __future__ import annotations

import os
import threading
import time

os.environ.update(TELEMETRY_OPT_OUT="True")

from inference import InferencePipeline
from streamvision.camera.entities import SourceProperties, VideoFrameProducer
from workload import HEIGHT, RATE_HZ, WIDTH, Event, Run

CANNOT = {"backward": "it stamps frames itself, by the time of their arrival"}


class Camera(VideoFrameProducer):
    """Gives each frame when it is captured; at the end it is silent, as a camera, until the stop."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._frames = run.pace("video")
        self.grabbed: list[Event] = []

    def grab(self) -> bool:
        event = next(self._frames, None)
        if event is None:
            while not self._run.over():
                time.sleep(0.01)
            return False
        self.grabbed.append(event)
        return True

    def retrieve(self):
        return True, self.grabbed[-1].data

    def release(self) -> None:
        return None

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def discover_source_properties(self) -> SourceProperties:
        rate_hz = 100 if self._run.paired else RATE_HZ["video"]
        return SourceProperties(
            width=WIDTH, height=HEIGHT, total_frames=-1, is_file=False, fps=rate_hz
        )


def stream(run: Run) -> None:
    camera = Camera(run)
    run.told["dropped"] = 0

    def infer(frames):
        (frame,) = frames
        run.take("video", camera.grabbed[frame.frame_id - 1].index, frame.image)
        return [{"output": run.fuse()}]

    def status(update) -> None:
        if update.event_type == "FRAME_DROPPED":
            run.told["dropped"] += 1
        if update.event_type == "INFERENCE_ERROR":
            run.errors.append(f"inference: {update.payload['error_message']}")

    pipeline = InferencePipeline.init_with_custom_logic(
        video_reference=lambda: camera,
        on_video_frame=infer,
        on_prediction=lambda prediction, frame: run.emit(*prediction["output"]),
        status_update_handlers=[status],
    )
    pipeline.start(use_main_thread=False)
    side = threading.Thread(
        target=run.feed,
        args=[lambda event: run.take(event.modality, event.index, event.data), "imu", "audio"],
        daemon=True,
    )
    side.start()
    run.wait_for_end()
    pipeline.terminate()
    pipeline.join()

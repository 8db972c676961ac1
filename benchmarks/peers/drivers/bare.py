"""A thread and a bounded queue: the least that one would write. What finds it full is dropped."""

from __future__ import annotations

import queue
import threading

from workload import Run


def stream(run: Run) -> None:
    samples: queue.Queue = queue.Queue(maxsize=64)
    run.told["dropped"] = 0

    def consume() -> None:
        while (event := samples.get()) is not None:
            run.handle(event.modality, event.index, event.data)

    def push(event) -> None:
        try:
            samples.put_nowait(event)
        except queue.Full:
            run.told["dropped"] += 1

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    run.feed(push)
    run.wait_for_end()
    while consumer.is_alive():
        try:
            samples.put(None, timeout=0.1)
            break
        except queue.Full:
            continue
    consumer.join(timeout=5)

"""How far estimates without calibration are from latencies that others published: a table, and the fit.

    python -m benchmarks.published_latencies [--fit] [--json bench-out/published_latencies.json]

Each figure is the latency of one run in TensorRT, of a network built here again with its sizes. The devices
are in two halves: the efficiencies that fit one half estimate the other, and the other way round, so that
each error is of a device that nothing was fitted to. `--fit` does that, for discrete and for integrated
GPUs apart, and then fits all figures: the numbers of `devices/targets/planning/efficiencies.yaml`.
Without it, the table is of estimates by that file.

Only facts are taken from the sources: device, network, precision, batch, milliseconds. Left out were fp32
on Ampere (TF32, which Fusedge switches off) and what ArtTRT has at batch 1 on Jetson Orin, where its
wrapper in PyTorch takes as long as the network.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from benchmarks.published_networks import NETWORKS
from fusedge.devices.targets.facts.table import Target, find_target
from fusedge.devices.targets.planning.default_rates import Efficiencies, efficiencies, rates_by
from fusedge.devices.targets.planning.kernels import Kernel, kernels_of
from fusedge.devices.targets.planning.rates import Rates
from fusedge.devices.targets.planning.roofline import kernel_seconds
from fusedge.export.part_work import count_work

# Sources. What each measures, beside the kernels, is told, since it is in the figures.
PADDLE = "paddlepaddle.org.cn, benchmark_gpu: T4, Paddle 2.3 with TensorRT 8.0; with copies"
BERT = "github.com/NVIDIA/TensorRT, demo/BERT/README.md: averages, without copies"
MMDEPLOY = "github.com/open-mmlab/mmdeploy, docs/en/03-benchmark: T4, TensorRT 7.2"
COLAB = "github.com/libingwei/AI-Infer-Acc, release v0.1.0: T4"
TORCH2TRT = "github.com/NVIDIA-AI-IOT/torch2trt, benchmarks/: PyTorch calls TensorRT 5 to 7"
KENTAROY = "github.com/kentaroy47/benchmark-FP32-FP16-INT8-with-TensorRT: called from PyTorch"
TF_QAT = "docs.nvidia.com, TensorFlow quantization toolkit, model zoo: A100, TensorRT 8.4"
ULTRALYTICS = "github.com/ultralytics/ultralytics, README: A100, TensorRT"
ARTTRT = "github.com/Juanx65/ArtTRT: PyTorch calls TensorRT 8; means that scatter by 5 to 40 %"
HOKWANG = "github.com/hokwangchoi/jetson-orin-nano-benchmarks: trtexec 10.3, GPU time"


# Devices in two halves: each sets the efficiencies by which the other is estimated.
FIRST_HALF = ("t4", "rtx-3060", "jetson-agx-xavier-32gb", "jetson-orin-nano-8gb")


@dataclass(frozen=True)
class Figure:
    """`ms` is for the whole batch."""

    target: str
    network: str
    precision: str
    batch: int
    ms: float
    source: str

    @property
    def first_half(self) -> bool:
        return self.target.partition(":")[0] in FIRST_HALF


def _rows(target: str, source: str, text: str) -> list[Figure]:
    """Lines of `network precision batch ms`, several of them parted by commas."""
    rows = (line.split() for line in text.replace("\n", ",").split(",") if line.strip())
    return [Figure(target, n, p, int(batch), float(ms), source) for n, p, batch, ms in rows]


FIGURES: tuple[Figure, ...] = (
    *_rows(
        "t4",
        PADDLE,
        """mobilenet-v1 fp16 1 0.4925, mobilenet-v1 fp16 2 0.7485, mobilenet-v1 fp16 4 1.2914
        mobilenet-v1 fp32 1 0.8737, mobilenet-v1 fp32 2 1.4106, mobilenet-v1 fp32 4 2.5238
        mobilenet-v2 fp16 1 0.5926, mobilenet-v2 fp16 2 0.9131, mobilenet-v2 fp16 4 1.4491
        mobilenet-v2 fp32 1 1.1125, mobilenet-v2 fp32 2 1.6682, mobilenet-v2 fp32 4 2.819
        resnet50 fp16 1 1.3045, resnet50 fp16 2 1.8964, resnet50 fp16 4 3.1821
        resnet50 fp32 1 3.5244, resnet50 fp32 2 5.2147, resnet50 fp32 4 9.3702""",
    ),
    *_rows(
        "t4",
        BERT,
        """bert-base-128 int8 1 1.69, bert-base-128 fp16 1 1.95, bert-base-128 int8 8 4.66
        bert-base-128 fp16 8 9.09, bert-base-384 int8 1 2.52, bert-base-384 fp16 1 4.04
        bert-large-128 int8 1 3.65, bert-large-128 fp16 1 5.53, bert-large-384 int8 1 7.29
        bert-large-384 fp16 1 12.45, bert-large-384 int8 8 49.24, bert-large-384 fp16 8 92.92""",
    ),
    *_rows("t4", MMDEPLOY, "resnet50 fp32 1 2.97, resnet50 fp16 1 1.26, resnet50 int8 1 1.21"),
    *_rows(
        "t4",
        COLAB,
        "resnet18 fp32 1 2.26, resnet18 fp16 1 1.01, resnet18 fp32 32 25.76, resnet18 fp16 32 8.02",
    ),
    *_rows(
        "jetson-agx-xavier-32gb:MAXN",
        TORCH2TRT,
        """alexnet fp16 1 1.93, squeezenet1.0 fp16 1 1.37, squeezenet1.1 fp16 1 0.951
        resnet18 fp16 1 1.64, resnet34 fp16 1 2.79, resnet50 fp16 1 3.48, resnet101 fp16 1 6.22
        resnet152 fp16 1 8.58, densenet121 fp16 1 6.37, vgg11 fp16 1 5.16, vgg13 fp16 1 6.27
        vgg16 fp16 1 7.46, vgg19 fp16 1 8.52""",
    ),
    *_rows(
        "jetson-agx-xavier-32gb:MAXN",
        KENTAROY,
        """resnet18-256 fp32 1 3.8, resnet34-256 fp32 1 5.6, resnet50-256 fp32 1 9.9
        resnet18-256 fp16 1 2.1, resnet34-256 fp16 1 3.3, resnet50-256 fp16 1 4.4
        resnet18-256 int8 1 1.7, resnet34-256 int8 1 2.7, resnet50-256 int8 1 3.0""",
    ),
    *_rows(
        "jetson-orin-nano-8gb:15W",
        ARTTRT,
        """resnet50 fp16 32 65.0, resnet50 int8 32 50.3
        resnet50 fp16 256 425.8, resnet50 int8 256 280.7, resnet152 fp16 32 137.8, resnet152 int8 32 73.3
        resnet152 fp16 256 1041.8, resnet152 int8 256 537.4, mobilenet-v2 fp16 256 235.0
        mobilenet-v2 int8 256 164.6, resnet18 fp16 256 218.3, resnet18 int8 256 148.2
        resnet34 fp16 256 322.4, resnet34 int8 256 201.4""",
    ),
    *_rows(
        "jetson-orin-nano-8gb:7W",
        ARTTRT,
        """resnet50 fp16 32 136.6, resnet50 int8 32 94.8
        resnet50 fp16 256 1049.1, resnet50 int8 256 650.6, resnet152 fp16 32 313.6
        resnet152 int8 32 180.8""",
    ),
    *_rows("jetson-orin-nano-8gb:MAXN_SUPER", HOKWANG, "yolov8n fp16 1 4.43, yolov8n int8 1 3.49"),
    *_rows(
        "a100-sxm4-40gb",
        BERT,
        """bert-base-128 int8 1 0.58, bert-base-128 fp16 1 0.67, bert-base-128 int8 8 0.95
        bert-base-128 fp16 8 1.38, bert-base-384 int8 1 1.15, bert-base-384 fp16 1 1.31
        bert-large-128 int8 1 1.25, bert-large-128 fp16 1 1.64, bert-large-384 int8 1 2.81
        bert-large-384 fp16 1 3.12, bert-large-384 int8 32 23.17, bert-large-384 fp16 32 43.01""",
    ),
    *_rows(
        "a100-sxm4-40gb",
        TF_QAT,
        """resnet50 int8 1 0.46, resnet101 int8 1 0.84, mobilenet-v1 int8 1 0.16
        mobilenet-v2 int8 1 0.30""",
    ),
    *_rows(
        "a100-sxm4-40gb",
        ULTRALYTICS,
        """yolov8n fp16 1 0.99, yolov8s fp16 1 1.20, yolov8m fp16 1 1.83, yolov8l fp16 1 2.39
        yolov8x fp16 1 3.53""",
    ),
    *_rows(
        "a30",
        BERT,
        """bert-base-128 int8 1 0.63, bert-base-128 fp16 1 0.89, bert-base-128 int8 8 1.45
        bert-base-128 fp16 8 2.50, bert-base-384 int8 1 1.33, bert-base-384 fp16 1 1.70
        bert-large-128 int8 1 1.75, bert-large-128 fp16 1 2.14, bert-large-384 int8 1 3.47
        bert-large-384 fp16 1 4.57, bert-large-384 int8 32 46.56, bert-large-384 fp16 32 87.57""",
    ),
    *_rows(
        "jetson-nano-4gb:MAXN",
        TORCH2TRT,
        """alexnet fp16 1 14.7, squeezenet1.0 fp16 1 7.6, squeezenet1.1 fp16 1 4.34
        resnet18 fp16 1 11.4, resnet34 fp16 1 20.2, resnet50 fp16 1 29.8, resnet101 fp16 1 51.1
        resnet152 fp16 1 72.3, densenet121 fp16 1 24.8, vgg11 fp16 1 55.1, vgg13 fp16 1 68.7
        vgg16 fp16 1 85.1""",
    ),
    *_rows(
        "jetson-agx-orin-64gb:MAXN",
        ARTTRT,
        """resnet50 fp16 256 206.9, resnet50 int8 256 149.0, resnet152 fp16 32 46.4
        resnet152 int8 32 37.5, resnet152 fp16 256 338.6, resnet152 int8 256 202.0""",
    ),
    *_rows(
        "jetson-agx-orin-64gb:15W",
        ARTTRT,
        """resnet50 fp16 32 99.9, resnet50 int8 32 76.4, resnet50 fp16 256 748.9
        resnet50 int8 256 487.3, resnet152 fp16 32 219.7, resnet152 int8 32 129.3""",
    ),
    *_rows(
        "rtx-3060",
        ARTTRT,
        """resnet18 fp16 32 4.1, resnet18 int8 32 1.8, resnet18 fp16 256 26.0, resnet50 fp16 1 0.8
        resnet50 int8 1 0.5, resnet50 fp16 32 10.4, resnet50 int8 32 4.8, resnet50 fp16 256 70.8
        resnet101 fp16 1 1.3, resnet101 int8 1 0.9, resnet34 fp16 1 0.6, resnet34 int8 1 0.4
        mobilenet-v2 fp16 1 0.4, mobilenet-v2 int8 1 0.4""",
    ),
)

MODES = (
    ("jetson-orin-nano-8gb:15W", "jetson-orin-nano-8gb:7W"),
    ("jetson-agx-orin-64gb:MAXN", "jetson-agx-orin-64gb:15W"),
)
# Where the search begins, and its bounds.
_SEARCHED: dict[str, tuple[float, float, float]] = {
    "run_us": (30, 5, 60),
    "start_cycles": (3000, 500, 6000),  # small kernels take some µs at about 1 GHz
    "fill_cycles": (6000, 200, 8e4),
    "unfilled_share": (0.15, 5e-3, 0.6),
    "bandwidth_share": (0.7, 0.3, 0.9),
    "convolution": (0.5, 0.1, 0.85),
    "product": (0.5, 0.1, 0.85),
    "depthwise": (0.1, 0.01, 0.85),
    "attention": (0.3, 0.05, 0.85),
}
_NUMBERS = frozenset(list(_SEARCHED)[:5])


@functools.cache
def _kernels(network: str, precision: str, batch: int) -> tuple[Kernel, ...]:
    work = count_work(NETWORKS[network](precision), network, precision, {"batch": batch})
    assert not work.unknown, (network, work.unknown)
    return tuple(kernels_of(work, "gpu"))


@functools.cache
def _target(name: str) -> Target:
    return find_target(name, "super" if name.endswith("SUPER") else "standard")


def _processing(figure: Figure) -> str:
    return "integrated" if _target(figure.target).compute.memory_is_shared else "discrete"


def _seconds(figure: Figure, rates: Rates) -> float:
    seconds = rates.run_s
    for kernel in _kernels(figure.network, figure.precision, figure.batch):
        times = kernel_seconds(kernel, rates)
        assert times is not None, (figure, kernel)
        seconds += times[0] + max(times[1:])
    return seconds


def ratios(figures: Sequence[Figure], table: Efficiencies) -> list[float]:
    """Estimate over published, for each figure."""
    rates = {}
    for name in {figure.target for figure in figures}:
        target = _target(name)
        found = rates_by(table, target.compute, target.compute_capability)
        if found is None:
            raise SystemExit(f"{name}: its peak or bandwidth is not in the table of targets")
        rates[name] = found
    return [1e3 * _seconds(each, rates[each.target]) / each.ms for each in figures]


def fit(figures: Sequence[Figure], start: Efficiencies) -> Efficiencies:
    """The efficiencies with the least mean error, as a factor, by a search along each number in turn.

    `launch_us` stays, and so do the shares of kinds that the figures have too little of.
    """
    present = {k.kind for f in figures for k in _kernels(f.network, f.precision, f.batch)}
    searched = {name: each for name, each in _SEARCHED.items() if name in present | _NUMBERS}
    first = {name: each[0] for name, each in searched.items()}

    def with_numbers(numbers: Mapping[str, float]) -> Efficiencies:
        shares = {kind: numbers.get(kind, share) for kind, share in start.peak_share.items()}
        others = {name: numbers[name] for name in _NUMBERS}
        return start.model_copy(update={"peak_share": shares, **others})

    def loss(numbers: Mapping[str, float]) -> float:
        errors = [abs(math.log(each)) for each in ratios(figures, with_numbers(numbers))]
        return fmean(errors) + 5e-4 * sum(math.log(numbers[n] / first[n]) ** 2 for n in first)

    best, least = dict(first), loss(first)
    for _ in range(2):  # starting again with large steps gets out of most hollows
        step = dict.fromkeys(first, 0.4)
        while max(step.values()) > 5e-3:
            for name, (_, low, high) in searched.items():
                for sign in (1, -1):
                    moved = math.exp(sign * step[name]) * best[name]
                    tried = {**best, name: min(max(moved, low), high)}
                    if (found := loss(tried)) < least - 1e-7:
                        best, least, step[name] = tried, found, step[name] * 1.2
                        break
                else:
                    step[name] *= 0.6
    return with_numbers(best)


def summary(found: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile of the error as a factor, and whether estimates are high or low."""
    errors = sorted(abs(math.log(each)) for each in found)
    return {
        "figures": len(errors),
        "median": round(math.exp(median(errors)), 2),
        "p90": round(math.exp(errors[min(len(errors) - 1, math.ceil(0.9 * len(errors)) - 1)]), 2),
        "bias": round(math.exp(median(math.log(each) for each in found)), 2),
    }


def _print(title: str, found: Sequence[float]) -> None:
    row = summary(found)
    print(
        f"{title:<28} {row['figures']:>4} figures, error: median x{row['median']:.2f}, "
        f"90 % within x{row['p90']:.2f}; estimate over published: {row['bias']:.2f}"
    )


def _cross(figures: Sequence[Figure], start: Efficiencies) -> tuple[list[float], Efficiencies]:
    """Ratios of both halves, each by what was fitted to the other, and the fit to all."""
    found: list[float] = []
    for half in (True, False):
        own = [each for each in figures if each.first_half == half]
        other = [each for each in figures if each.first_half != half]
        crossed = ratios(other, fit(own, start))
        devices = ", ".join(sorted({each.target.partition(":")[0] for each in other}))
        _print(f"  {devices}", crossed)
        found += crossed
    return found, fit(figures, start)


def between_modes() -> dict[str, float]:
    """Estimated over published change of latency from one power mode of a Jetson to another, by run."""
    found = {}
    for fast, slow in MODES:
        by_run = {(f.target, f.network, f.precision, f.batch): f for f in FIGURES}
        for (target, *run), first in by_run.items():
            second = by_run.get((slow, *run))
            if target == fast and second is not None:
                before, after = ratios([first, second], efficiencies()["integrated"])
                found[f"{fast} to {slow.partition(':')[2]}: {' '.join(map(str, run))}"] = (
                    after / before
                )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    report: dict[str, object] = {}
    for processing in ("discrete", "integrated"):
        figures = [each for each in FIGURES if _processing(each) == processing]
        table = efficiencies()[processing]
        if chosen.fit:
            print(f"{processing}: each half of the devices by what fits the other")
            crossed, table = _cross(figures, table)
            _print("  together", crossed)
            report[f"{processing} crossed"] = summary(crossed)
            report[f"{processing} fit"] = table.model_dump()
            print(f"    {table.model_dump(exclude={'source'})}")
        found = ratios(figures, table)
        for figure, ratio in zip(figures, found, strict=True):
            name = f"{figure.network} {figure.precision} batch {figure.batch}"
            ms = f"{figure.ms:9.3f} ms {ratio * figure.ms:9.3f} ms"
            print(f"{figure.target:<32} {name:<30} {ms}  {ratio:5.2f}")
        _print(f"{processing}, fitted to all", found)
        report[processing] = {
            "summary": summary(found),
            "rows": [
                {**asdict(figure), "estimate_ms": ratio * figure.ms}
                for figure, ratio in zip(figures, found, strict=True)
            ],
        }
    changes = between_modes()
    for name, ratio in changes.items():
        print(f"{name:<70} {ratio:5.2f}")
    _print("from mode to mode", list(changes.values()))
    report["between modes"] = {"summary": summary(list(changes.values())), "rows": changes}
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

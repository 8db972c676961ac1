"""Detection of what a machine has, on recorded trees of files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.detection.detect import detect
from fusedge.devices.targets.detection.machine import Gpu, Machine
from fusedge.devices.targets.detection.machine_target import machine_target
from fusedge.devices.targets.facts.table import jetsons
from tests.devices.recorded_machines import MACHINES, NAMES, absent, nvml, recorded

MODEL, COMPATIBLE = "proc/device-tree/model", "proc/device-tree/compatible"
RELEASE, STATUS = "etc/nv_tegra_release", "var/lib/nvpmodel/status"
MODES, CPUINFO = "etc/nvpmodel.conf", "proc/cpuinfo"
PARSED = (
    *(MODEL, COMPATIBLE, RELEASE, STATUS, MODES, CPUINFO),
    *("proc/device-tree/nvidia,dtsfilename", "proc/device-tree/chosen/ids"),
    *("proc/meminfo", "proc/self/status", "proc/self/cgroup", "etc/os-release"),
    *("proc/driver/nvidia/version", "proc/driver/nvidia/gpus/0/information"),
    *("sys/devices/soc0/soc_id", "sys/devices/soc0/family", "run/systemd/container"),
    *("sys/devices/system/cpu/online", "sys/devices/system/cpu/present"),
    *("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "sys/fs/cgroup/cpu.max"),
    *("sys/devices/system/cpu/cpu0/cache/index0/size", "sys/fs/cgroup/memory.max"),
    *("sys/class/devfreq/17000000.gpu/cur_freq", "sys/kernel/nvpmodel_clk_cap/emc"),
    "sys/devices/platform/gpu.0/tpc_pg_mask",
)


def not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


def bare(root: Path, **given: Any) -> Machine:
    """The machine under `root`, with nothing installed but what is given."""
    settings = {"load": absent, "version": not_installed, "which": lambda name: None} | given
    return detect(root, **settings)


def with_nvml(root: Path, library: Any) -> Machine:
    return bare(root, load=lambda name: library if name == "pynvml" else absent(name))


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from (*texts(key), *texts(each))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts(each)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_machine_is_described_whole(name: str) -> None:
    machine = recorded(name)
    try:
        target = machine_target(machine, absent)
        named: dict[str, Any] = {
            "target": target.name,
            "compute_capability": target.compute_capability,
        }
    except FusedgeError as error:
        named = {"target": error.line(), "compute_capability": None}
    found = machine.model_dump(mode="json")
    del found["python"]  # of this test
    expected = json.loads((MACHINES / name / "expected.json").read_text("utf-8"))
    assert {**named, "machine": found} == expected


def test_this_machine_is_described_in_json() -> None:
    found = json.loads(detect().model_dump_json())
    assert found["cores"] >= found["usable_cores"] >= 1 and found["python"].count(".") == 2
    assert set(found) == set(Machine.model_fields)


def test_what_is_unknown_stays_unknown(tmp_path: Path) -> None:
    machine = bare(tmp_path)
    assert machine.architecture == machine.os == "unknown"
    assert machine.gpu_note == (
        "no /proc/driver/nvidia, nvidia-smi not found; the package nvidia-ml-py is not installed"
    )
    assert machine.onnxruntime_note == "onnxruntime is not installed"
    told = {"architecture", "os", "python", "gpu_note", "onnxruntime_note"}
    assert not any(value for name, value in machine if name not in told)


@pytest.mark.parametrize("name", jetsons())
def test_every_module_of_the_table_is_found_by_each_of_its_parts(name: str, tmp_path: Path) -> None:
    for part in jetsons()[name].parts:
        names = f"acme,box\0nvidia,p3768-0000+{part}-super\0nvidia,{part}\0"
        root = tree(tmp_path, {MODEL: "A board that nobody knows\0", COMPATIBLE: names})
        # without a chip that NVIDIA makes, a number alone is nobody's
        assert bare(root).jetson is None
        jetson = bare(tree(root, {COMPATIBLE: names + "nvidia,tegra234\0"})).jetson
        assert jetson is not None and (jetson.module, jetson.part) == (name, part)
        assert jetson.compute_capability == jetsons()[name].compute_capability


def test_a_jetson_of_an_unknown_module_is_described_by_its_chip(tmp_path: Path) -> None:
    names = "nvidia,p9999-0000+p9998-0000\0nvidia,tegra264\0"
    machine = bare(tree(tmp_path, {MODEL: "NVIDIA Jetson Next\0", COMPATIBLE: names}))
    assert machine.jetson is not None
    assert (machine.jetson.module, machine.jetson.part) == (None, None)
    target = machine_target(machine, absent)
    assert (target.name, target.compute_capability) == ("jetson-next", "11.0")
    assert target.row is None and target.compute.peak == {}


BOARDS = sorted({part[1:5] for row in jetsons().values() for part in row.parts})


@pytest.mark.parametrize("board", BOARDS)
def test_a_variant_that_the_table_does_not_have_is_no_other_one(board: str, tmp_path: Path) -> None:
    """Whichever of the places has it: what stands after it is of the boards that the tree serves."""
    row = next(row for row in jetsons().values() for part in row.parts if part[1:5] == board)
    listed = row.parts[0]
    tail = f"nvidia,p0000-0000+{listed}\0nvidia,tegra234\0"
    for files in (
        {f"proc/device-tree/chosen/plugin-manager/ids/{board}-9999-400": "", COMPATIBLE: tail},
        {"proc/device-tree/chosen/ids": f"{board}-9999-000", COMPATIBLE: tail},
        {COMPATIBLE: f"nvidia,p{board}-9999\0{tail}"},
        {
            COMPATIBLE: f"nvidia,p{board}-9999\0nvidia,tegra234",
            "proc/device-tree/nvidia,dtsfilename": f"/a/tegra-{listed}.dts",
        },
    ):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        # a model that is named as in the table makes it none of the table either
        machine = bare(tree(root, {MODEL: row.name, **files}))
        jetson = machine.jetson
        assert jetson is not None and (jetson.part, jetson.module) == (f"p{board}-9999", None)
        target = machine_target(machine, absent)
        assert target.row is None and target.name.endswith(f"-p{board}-9999")
        assert target.compute_capability == "8.7"


def test_no_limit_of_the_memorys_clock_is_not_a_limit(tmp_path: Path) -> None:
    """NVIDIA's configurations say -1 for it, which is the largest number."""
    cap = "sys/kernel/nvpmodel_clk_cap/emc"
    for text, mhz in (("3199000000", 3199.0), ("0", None), ("-1", None), (str(2**31 - 1), None)):
        jetson = bare(tree(tmp_path, {COMPATIBLE: "nvidia,tegra234", cap: text})).jetson
        assert jetson is not None and jetson.emc_cap_mhz == mhz


def test_a_release_that_no_table_has_has_no_jetpack(tmp_path: Path) -> None:
    line = "# R36 (release), REVISION: 4.99, GCID: 1, BOARD: generic, EABI: aarch64, DATE: -"
    jetson = bare(tree(tmp_path, {RELEASE: line})).jetson
    assert jetson is not None and (jetson.l4t, jetson.jetpack) == ("36.4.99", None)


@pytest.mark.parametrize(
    "text", ["", "R36", "# R3600 (release), REVISION: 4.3", "\0\xff", "x" * 99]
)
def test_a_release_without_sense_makes_no_jetson(text: str, tmp_path: Path) -> None:
    assert bare(tree(tmp_path, {RELEASE: text})).jetson is None


def test_hostile_power_modes_are_left_out(tmp_path: Path) -> None:
    lines = [
        "< POWER_MODEL ID=0 NAME=15W >",
        "< POWER_MODEL ID=1 NAME=\x1b[31mRED >",
        "< POWER_MODEL ID=2 NAME=" + "A" * 1000 + " >",
        "< POWER_MODEL ID=99999 NAME=MANY >",
        "\n" * 500_000 + "< POWER_MODEL ID=3 NAME=25W >",
    ]
    files: dict[str, str | bytes] = {
        COMPATIBLE: "nvidia,p3767-0005\0nvidia,tegra234\0",
        MODES: "\n".join(lines),
        STATUS: "pmode:0007 fmode:quiet\n",
    }
    jetson = bare(tree(tmp_path, files)).jetson
    assert jetson is not None
    assert (jetson.power_modes, jetson.power_mode) == (("15W", "25W"), None)


def core(number: int, **fields: str) -> str:
    lines = [f"{name.replace('_', ' ')}\t: {value}\n" for name, value in fields.items()]
    return f"processor\t: {number}\n" + "".join(lines) + "\n"


def test_cores_that_no_table_has_are_described_by_their_numbers(tmp_path: Path) -> None:
    arm = {"CPU_implementer": "0xff", "CPU_part": "0x1", "Features": "asimd sve"}
    cpuinfo = core(0, **arm) + core(1, **arm | {"CPU_part": "0x2", "Features": "asimd bf16"})
    machine = bare(tree(tmp_path, {CPUINFO: cpuinfo}))
    assert [kind.kind for kind in machine.core_kinds] == ["0xff:0x001", "0xff:0x002"]
    assert machine.processor == "1 x ARM core 0xff:0x001 + 1 x ARM core 0xff:0x002"
    assert machine.cpu_flags == ("asimd",)  # what all cores have
    assert machine.architecture == "aarch64"


@pytest.mark.parametrize(
    ("cpuinfo", "architecture"),
    [
        (core(0, flags="fpu lm sse2"), "x86_64"),
        (core(0, flags="fpu sse2"), "i686"),
        (core(0, CPU_implementer="0x41", CPU_part="0xd03", Features="half thumb neon"), "armv7l"),
        (core(0, isa="rv64imafdc"), "unknown"),
    ],
)
def test_the_architecture_is_that_of_the_recorded_machine(
    cpuinfo: str, architecture: str, tmp_path: Path
) -> None:
    assert bare(tree(tmp_path, {CPUINFO: cpuinfo})).architecture == architecture


def test_control_groups_of_the_first_version_limit_too(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "proc/self/cgroup": "4:memory:/a/b\n2:cpu,cpuacct:/a/../b\n1:name=systemd:/\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1073741824\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        "sys/devices/system/cpu/online": "0-7\n",
        "proc/self/status": "Cpus_allowed_list:\t2-3,6,100\n",
    }
    machine = bare(tree(tmp_path, files))
    assert (machine.memory_limit_bytes, machine.cpu_quota) == (1 << 30, 0.5)
    assert machine.usable_cores == 1 and machine.cores == 8
    (tmp_path / "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us").unlink()
    assert bare(tmp_path).usable_cores == 3


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"proc/self/cgroup": "3:cpu:/docker/0123abcd\n"}, "docker"),
        ({"run/systemd/container": "lxc\n"}, "lxc"),
        ({"run/.containerenv": ""}, "podman"),
        ({".dockerenv": "", "var/run/secrets/kubernetes.io/x": ""}, "kubernetes"),
        ({"proc/self/cgroup": "0::/user.slice\n"}, None),
    ],
)
def test_a_container_is_told(
    files: dict[str, str | bytes], kind: str | None, tmp_path: Path
) -> None:
    assert bare(tree(tmp_path, files)).container == kind


def test_a_gpu_without_nvml_is_read_from_the_driver(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  "
            "Thu Feb 22 01:44:30 2024\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 4090\n"
            "IRQ: 1\n",
        },
    )
    machine = bare(root, which=lambda name: "/usr/bin/nvidia-smi")
    assert machine.gpus == (Gpu(name="NVIDIA GeForce RTX 4090"),)
    assert machine.gpu_driver == "550.54.14"
    assert machine.gpu_note.startswith("from /proc/driver/nvidia; ")
    assert machine_target(machine, absent).name == "rtx-4090"


H100 = {"name": b"NVIDIA H100 80GB HBM3", "memory_mib": 81559, "capability": (9, 0)}


def test_an_nvml_that_fails_is_told(tmp_path: Path) -> None:
    machine = with_nvml(tmp_path, nvml({"error": "Driver Not Loaded\n"}))
    assert machine.gpus == () and machine.gpu_note.endswith("NVML: Driver Not Loaded")


# Without these NVML cannot say which GPUs there are; all else it may not support.
NEEDED = {"nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName"}


@pytest.mark.parametrize("call", [name for name in vars(nvml({})) if name.startswith("nvml")])
def test_whatever_call_of_nvml_fails_is_one_line_at_most(call: str, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("GPU is lost\nat all")

    library = nvml({"driver": "580.1", "gpus": [H100]})
    setattr(library, call, fail)
    machine = with_nvml(tmp_path, library)
    assert machine.gpu_note.isprintable()
    assert [gpu.name for gpu in machine.gpus] == (
        [] if call in NEEDED else ["NVIDIA H100 80GB HBM3"]
    )
    assert ("GPU is lost at all" in machine.gpu_note) == (call in NEEDED)


def test_one_lost_gpu_does_not_hide_the_others(tmp_path: Path) -> None:
    machine = with_nvml(tmp_path, nvml({"driver": "580.1", "gpus": [{}, H100]}))
    assert machine.gpus == (
        Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 << 20, compute_capability="9.0"),
    )
    assert machine.gpu_note == "from NVML; GPU 0: Not Supported"


def test_installed_packages_are_told(tmp_path: Path) -> None:
    versions = {"tensorrt-rtx-cu13": "1.7.1", "tensorrt": "10.3.0", "torch": "2.13.0"}
    runtime = SimpleNamespace(__version__="1.20", get_available_providers=lambda: ["A", "B"])

    def version(name: str) -> str:
        return versions[name] if name in versions else not_installed(name)

    machine = bare(
        tmp_path,
        version=version,
        load=lambda name: {"onnxruntime": runtime}.get(name) or absent(name),
    )
    assert machine.tensorrt == {"tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1"}
    assert machine.torch == "2.13.0"
    assert (machine.onnxruntime, machine.onnxruntime_providers) == ("1.20", ("A", "B"))


@pytest.mark.parametrize("error", [ImportError("libcudnn.so.9: not found"), OSError("bad ELF")])
def test_a_broken_onnxruntime_is_told(tmp_path: Path, error: Exception) -> None:
    def load(name: str) -> Any:
        raise error if name == "onnxruntime" else ModuleNotFoundError(name)

    assert str(error) in bare(tmp_path, load=load).onnxruntime_note


def test_the_newest_of_the_systems_tensorrt_libraries_counts(tmp_path: Path) -> None:
    folder = "usr/lib/aarch64-linux-gnu/libnvinfer.so."
    files: dict[str, str | bytes] = {
        folder + name: "" for name in ("10.9.0", "10.13.3", "8", "x\x1b")
    }
    found = bare(tree(tmp_path, files)).tensorrt_system
    assert found is not None and (found.version, found.pythons) == ("10.13.3", ())


FRAGMENTS = st.sampled_from(
    [
        *(
            b"processor\t: 0\n",
            b"CPU implementer\t: 0x41\n",
            b"CPU part\t: 0xd42\n",
            b"flags : lm\n",
        ),
        *(
            b"model name : ",
            b"cpu MHz : 1e9\n",
            b"cpu family : 6\n",
            b"MemTotal: ",
            b" kB\n",
            b"\n\n",
        ),
        *(
            b"nvidia,tegra234\0",
            b"p3767-0005",
            b"R36 (release), REVISION: 4.3",
            b"pmode:0001",
            b"Tegra",
        ),
        *(
            b"< POWER_MODEL ID=1 NAME=",
            b"15W >",
            b"0-",
            b"9" * 30,
            b"0::/a/../",
            b"5:cpu,memory:/",
            b"35",
        ),
        *(
            b"Cpus_allowed_list: ",
            b"PRETTY_NAME=",
            b"Kernel Module ",
            b" 1.2 ",
            b"Model: ",
            b"100000 ",
            b"K",
        ),
    ]
)
CONTENT = st.lists(FRAGMENTS | st.binary(max_size=8), max_size=8).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(PARSED), CONTENT, min_size=1, max_size=6))
def test_no_content_of_a_file_makes_detection_fail(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    machine = bare(tree(tmp_path_factory.mktemp("root"), dict(files)))
    assert all(text.isprintable() for text in texts(machine.model_dump()))
    assert machine_target(machine, absent).name


@pytest.mark.parametrize("name", PARSED)
def test_a_file_of_any_kind_is_read_as_nothing_or_in_part(name: str, tmp_path: Path) -> None:
    path = tree(tmp_path, {name: b"\xff\0\x1b" * 700_000}) / name
    assert all(text.isprintable() for text in texts(bare(tmp_path).model_dump()))
    path.unlink()
    path.mkdir()
    nothing = bare(tmp_path)
    path.rmdir()
    os.mkfifo(path)  # which nobody writes to
    assert bare(tmp_path) == nothing
    path.unlink()
    path.symlink_to(path)
    assert bare(tmp_path) == nothing

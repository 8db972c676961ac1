"""Names of cameras, in a tree that is shaped like /dev and /sys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.address import Address
from fusedge.devices.capture.usb_names import udev_spelling
from fusedge.devices.capture.v4l2 import Offer, Span, cameras, resolve


class Tree:
    """A machine's /dev and /sys with USB video devices."""

    def __init__(self, root: Path) -> None:
        self.dev, self.sys = root / "dev", root / "sys"
        self.dev.mkdir()
        (self.sys / "class/video4linux").mkdir(parents=True)

    def plug(self, port: str, nodes: list[int], **texts: bytes | None) -> None:
        """A USB device that has made these nodes; `texts` are its attributes."""
        usb = self.sys / "devices/pci0000:00/0000:00:14.0/usb1" / port
        interface = usb / f"{port}:1.0"
        for index, number in enumerate(nodes):
            folder = interface / f"video4linux/video{number}"
            folder.mkdir(parents=True)
            (folder / "index").write_text(f"{index}\n")
            (folder / "name").write_text("A camera\n")
            (folder / "device").symlink_to(interface)
            (self.sys / f"class/video4linux/video{number}").symlink_to(folder)
            (self.dev / f"video{number}").touch()
        ids: dict[str, bytes | None] = {"idVendor": b"046d", "idProduct": b"082d"}
        for name, text in (ids | texts).items():
            if text is not None:
                (usb / name).write_bytes(text + b"\n")

    def link(self, kind: str, name: str, node: str) -> None:
        """A link as udev makes it."""
        folder = self.dev / "v4l" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(f"../../{node}")

    def resolve(self, target: str) -> str:
        address = Address(f"camera:{target}", "camera", target, {})
        return Path(resolve(address, self.dev, self.sys)).name


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (
            {"product": b"HD Pro Webcam C920", "serial": b"8B7F1B5F"},
            "usb-046d_HD_Pro_Webcam_C920_8B7F1B5F-video-index0",
        ),
        (
            {
                "manufacturer": b"SHENZHEN AONI ELECTRONIC CO., LTD",
                "product": b"Full HD webcam",
                "serial": b"AN202011030002",
            },
            "usb-SHENZHEN_AONI_ELECTRONIC_CO.__LTD_Full_HD_webcam_AN202011030002-video-index0",
        ),
        ({}, "usb-046d_082d-video-index0"),
        ({"manufacturer": b" A  B\t", "product": b"x/y"}, "usb-A_B_x_y-video-index0"),
        ({"product": b"P", "serial": b"1,2"}, "usb-046d_P-video-index0"),
        ({"product": b"P", "serial": b"\xc3\xa9"}, "usb-046d_P-video-index0"),
        ({"product": "Kamera für zwei".encode()}, "usb-046d_Kamera_für_zwei-video-index0"),
        ({"product": b"a\xffb"}, "usb-046d_a_b-video-index0"),
        ({"product": b"x" * 100}, f"usb-046d_{'x' * 63}-video-index0"),
    ],
)
def test_a_usb_camera_has_the_name_that_udev_would_give_it(
    tree: Tree, texts: dict[str, bytes], name: str
) -> None:
    tree.plug("1-2", [3], **texts)
    assert tree.resolve(f"by-id/{name}") == "video3"


def test_a_name_stays_with_its_camera_when_the_nodes_change(tmp_path: Path) -> None:
    for number, order in enumerate(([0, 2], [2, 0])):
        (tmp_path / str(number)).mkdir()
        tree = Tree(tmp_path / str(number))
        tree.plug("1-1", [order[0], order[0] + 1], product=b"Cam", serial=b"A")
        tree.plug("1-2", [order[1], order[1] + 1], product=b"Cam", serial=b"B")
        for serial, node in zip("AB", order, strict=True):
            assert tree.resolve(f"by-id/usb-046d_Cam_{serial}-video-index0") == f"video{node}"
            assert tree.resolve(f"by-id/usb-046d_Cam_{serial}-video-index1") == f"video{node + 1}"


def test_two_cameras_of_one_name_are_not_told_apart_by_chance(tree: Tree) -> None:
    tree.plug("1-1", [0], product=b"Cam", serial=b"0001")
    tree.plug("1-2", [1], product=b"Cam", serial=b"0001")
    tree.link("by-id", "usb-046d_Cam_0001-video-index0", "video1")
    with pytest.raises(FusedgeError, match="2 cameras have this name"):
        tree.resolve("by-id/usb-046d_Cam_0001-video-index0")


@pytest.mark.parametrize("kind", ["by-id", "by-path"])
def test_names_that_udev_made_are_known_too(tree: Tree, kind: str) -> None:
    tree.plug("1-1", [0])
    tree.link(kind, "platform-odd-video-index0", "video0")
    assert tree.resolve(f"{kind}/platform-odd-video-index0") == "video0"


def test_numbers_and_paths_name_nodes(tree: Tree) -> None:
    tree.plug("1-1", [0])
    assert tree.resolve("0") == tree.resolve(str(tree.dev / "video0")) == "video0"


@pytest.mark.parametrize(
    "target", ["7", "/dev/video99", "by-id/none", "by-path/none", "nonsense", "", "auto", "by-id/"]
)
def test_what_is_not_there_is_named(tree: Tree, target: str) -> None:
    what = "no device is there" if target == "auto" else f"no device {target}"
    with pytest.raises(FusedgeError, match=what):
        tree.resolve(target)


def test_a_name_does_not_lead_out_of_its_folder(tree: Tree, tmp_path: Path) -> None:
    (tree.dev / "v4l/by-id").mkdir(parents=True)
    (tree.dev / "secret").touch()
    with pytest.raises(FusedgeError, match="no device"):
        tree.resolve("by-id/../../secret")


def test_files_that_are_no_cameras_are_not_listed(tree: Tree) -> None:
    tree.plug("1-1", [0, 1])
    (tree.dev / "videotape").touch()
    assert cameras(tree.dev, tree.sys) == []


def test_a_camera_that_may_not_be_opened_is_listed_with_the_reason(tree: Tree) -> None:
    tree.plug("1-1", [0, 1], product=b"Cam", serial=b"A")
    for number in (0, 1):  # the test may run as root, who may open any file, but no folder
        (tree.dev / f"video{number}").unlink()
        (tree.dev / f"video{number}").mkdir()
    (camera,) = cameras(tree.dev, tree.sys)
    assert camera.name == "A camera"
    assert camera.uri == "camera:by-id/usb-046d_Cam_A-video-index0"
    assert "video0 cannot be opened: Is a directory" in camera.note


def test_a_machine_without_sysfs_has_nodes(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    address = Address("camera:0", "camera", "0", {})
    assert resolve(address, tmp_path, tmp_path / "none") == str(tmp_path / "video0")


@given(st.binary(max_size=80))
def test_any_text_of_a_device_becomes_a_part_of_a_file_name(text: bytes) -> None:
    spelt = udev_spelling(text)
    assert not re.search(r"[\s/,\x00-\x1f\ud800-\udfff]", spelt)
    assert spelt.encode("utf-8").isascii() or not text.isascii()


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 64), st.integers(0, 1000))
def test_the_smallest_size_that_is_large_enough(
    least: int, more: int, step: int, wanted: int
) -> None:
    span = Span(least, least + more, step)
    sizes = range(least, least + more + 1, step or 1)
    assert span.at_least(wanted) == next((size for size in sizes if size >= wanted), None)


def test_rates() -> None:
    size = Span(640, 640), Span(480, 480)
    listed = Offer("YUYV", *size, (30.0, 15.0, 7.5))
    assert [listed.rate(hz) for hz in (1, 7.5, 10, 15.1, 20, 60)] == [7.5, 7.5, 15, 15, 30, 30]
    assert Offer("YUYV", *size, (30000 / 1001,)).rate(30) == 30000 / 1001
    between = Offer("YUYV", *size, (60.0, 1.0), any_rate=True)
    assert [between.rate(hz) for hz in (0.5, 12.5, 90)] == [1, 12.5, 60]
    assert Offer("YUYV", *size).rate(12) == 12


def test_offers_are_shown_in_a_line() -> None:
    discrete = Offer("MJPG", Span(1280, 1280), Span(720, 720), (30000 / 1001, 15.0))
    assert str(discrete) == "MJPG 1280x720 at 29.97, 15 Hz"
    ranges = Offer("YUYV", Span(48, 1920, 2), Span(32, 1080, 2), (60.0, 1.0), any_rate=True)
    assert str(ranges) == "YUYV 48x32 to 1920x1080 at 1 to 60 Hz"
    assert str(Offer("GREY", Span(8, 8), Span(8, 8))) == "GREY 8x8"

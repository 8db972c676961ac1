"""URIs of sources."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.address import Address, parse, shown


class Form(NamedTuple):
    form: str
    options: frozenset[str]


FORMS = {
    "camera": Form("camera:0", frozenset({"width", "fps", "format"})),
    "rtsp": Form("rtsp://HOST", frozenset({"transport"})),
}


def test_target_and_options_are_told_apart() -> None:
    address = parse("camera:by-id/usb-A_B-index0?width=640&fps=29.97&format=M+J%20G", FORMS)
    assert (address.scheme, address.target) == ("camera", "by-id/usb-A_B-index0")
    assert address.whole("width", None, 1, 4096) == 640
    assert address.number("fps", None, 1, 1000) == 29.97
    assert address.text("format") == "M+J G"
    assert address.whole("height", 7, 1, 9) == 7 and address.number("height", None, 1, 9) is None


def test_the_query_of_a_network_address_is_its_servers() -> None:
    uri = "rtsp://user:pass@host:554/path?width=1&x=2#transport=udp"
    address = parse(uri, FORMS)
    assert address.target == "rtsp://user:pass@host:554/path?width=1&x=2"
    assert address.options == {"transport": "udp"}
    assert address.uri == "rtsp://…@host:554/path?width=1&x=2#transport=udp"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("camra:0", "did you mean 'camera'"),
        ("camera:0?widht=1", "did you mean 'width'"),
        ("camera:0?width=1&width=2", "given twice"),
        ("camera", "named by scheme"),
        ("rtsp://user:secret@host#transprt=udp", "did you mean 'transport'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(uri: str, message: str) -> None:
    with pytest.raises(FusedgeError) as error:
        parse(uri, FORMS)
    assert message in error.value.line() and "secret" not in error.value.line()


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "-1", "0", "1e9", "1_0", "0x10"])
def test_a_number_out_of_place_is_refused(value: str) -> None:
    address = parse(f"camera:0?fps={value}", FORMS)
    with pytest.raises(FusedgeError, match="is not a number from 1 to 1000"):
        address.number("fps", None, 1, 1000)


def test_a_broken_number_is_not_whole_and_a_choice_is_one_of_those_offered() -> None:
    address = parse("camera:0?width=1.5&format=MJPEG", FORMS)
    with pytest.raises(FusedgeError, match="is not a whole number"):
        address.whole("width", None, 1, 9)
    with pytest.raises(FusedgeError, match="did you mean 'MJPG'"):
        address.choice("format", ("MJPG", "YUYV"), "MJPG")


@pytest.mark.parametrize(
    "uri",
    [
        "rtsp://me:S3#CRET@host/x#transport=tcp",
        "rtsp:me:S3CRET@host/x",
        "rtsp:/me:S3CRET@host/x",
        "rtsp://host/user=admin&password=S3CRET&channel=1",
        "rtsp://host/x?user=S3CRET&pwd=S3CRET",
        "rtps://me:S3CRET@host/x",
    ],
)
def test_a_password_is_shown_nowhere(uri: str) -> None:
    assert "CRET" not in shown(uri)
    try:
        address = parse(uri, FORMS)
    except FusedgeError as error:
        assert "CRET" not in error.line()
    else:
        assert "CRET" not in address.uri and "CRET" in address.target


@given(st.text(max_size=60), st.text(alphabet="abc:@/?#%é ", min_size=1, max_size=20))
def test_credentials_are_never_shown(host: str, password: str) -> None:
    secret = password + "S3CRET"
    assert "S3CRET" not in shown(f"rtsp://user:{secret}@{host.replace('S3CRET', '')}")


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for uri in (text, f"camera:{text}", f"rtsp://{text}"):
        try:
            assert isinstance(parse(uri, FORMS), Address)
        except FusedgeError as error:
            assert "\n" not in error.line()

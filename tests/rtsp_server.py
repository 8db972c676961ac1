"""An RTSP server (GStreamer's) on this machine that plays a file, as a process of its own.

It runs under the system's Python, for which Debian has the bindings: python3-gi,
gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base, gstreamer1.0-plugins-good.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

PYTHON = "/usr/bin/python3"
_ELEMENTS = ("qtdemux", "rtph264pay", "rtpmp4gpay", "audiotestsrc", "mulawenc", "rtppcmupay")


def missing() -> str:
    """Why there can be no server; empty if there can."""
    if not Path(PYTHON).exists():
        return f"no {PYTHON}"
    done = subprocess.run(
        [PYTHON, __file__, "--check"], capture_output=True, text=True, check=False
    )
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


class RtspServer:
    """Plays an MP4 of H.264 and AAC at `rtsp://127.0.0.1:PORT/live`, from its start for each client, or, if
    `shared`, the same for all. Give a port to come again under the same address. With `packet_ms` the
    sound is a tone instead, at 8 kHz in packets of that length, sent when they are full.
    """

    def __init__(
        self,
        file: Path,
        *,
        login: str = "",
        shared: bool = False,
        port: int | None = None,
        packet_ms: int = 0,
    ) -> None:
        self.port = port or _free_port()
        options = ["--shared"] if shared else []
        options += [f"--packet-ms={packet_ms}"] if packet_ms else []
        self._process = subprocess.Popen(
            [PYTHON, __file__, str(file), str(self.port), login, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def uri(self, path: str = "/live", login: str = "", options: str = "") -> str:
        at = f"{login}@" if login else ""
        return f"rtsp://{at}127.0.0.1:{self.port}{path}" + (f"#{options}" if options else "")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(file: str, port: str, login: str, *options: str) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    lacking = [name for name in _ELEMENTS if not Gst.ElementFactory.find(name)]
    if lacking:
        raise SystemExit(f"GStreamer has no {', '.join(lacking)}")
    if file == "--check":
        return
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    sound = "d.audio_0 ! queue ! rtpmp4gpay name=pay1 pt=97"
    for option in options:
        if option.startswith("--packet-ms="):
            packet_ns = int(option.partition("=")[2]) * 1_000_000
            sound = (
                "audiotestsrc is-live=true samplesperbuffer=80 ! audio/x-raw,rate=8000,channels=1 ! "
                f"mulawenc ! rtppcmupay name=pay1 min-ptime={packet_ns} max-ptime={packet_ns}"
            )
    factory.set_launch(
        f'( filesrc location="{file}" ! qtdemux name=d '
        f"d.video_0 ! queue ! rtph264pay name=pay0 pt=96 config-interval=1 {sound} )"
    )
    factory.set_shared("--shared" in options)
    if login:
        user, _, password = login.partition(":")
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    _serve(sys.argv[1], *(sys.argv[2:] or ("", "")))

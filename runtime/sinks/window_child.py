"""The process of a window: shows the pictures that come in at standard input until somebody closes it.

It is a process of its own since X ends one whose display goes away, and macOS gives windows to a main
thread only. It is run as a file, knows the standard library alone, and takes a title, a width and a height.
In come pictures as binary PPM; out go lines:

- `failed WHY`: there is no window, and will be none;
- `size WIDTH HEIGHT`: of the window in pixels, at first and wherever it changes;
- `shown`: the picture is, and the next one may come.

It ends when standard input does, or with status CLOSED where q or Esc was typed or the window closed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

CLOSED = 3
NO_TKINTER = "no tkinter"
LEAST = (320, 240)  # pixels, below which nothing can be read
SCREEN_SHARE = 0.9  # that the window takes at most: beside it are bars, and its own frame


def _say(line: str) -> None:
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


def _exactly(count: int) -> bytes:
    """So many bytes of standard input; fewer where it has ended."""
    pieces = []
    while count > 0 and (piece := os.read(sys.stdin.fileno(), count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _picture() -> bytes:
    """The next picture, header and all; empty at the end of the input."""
    header = b""
    while not header.endswith(b"\n"):
        byte = _exactly(1)
        if not byte:
            return b""
        header += byte
    width, height = map(int, header.split()[1:3])
    return header + _exactly(width * height * 3)


def main() -> int:
    """Show until the end; the exit status."""
    try:
        import tkinter
    except ImportError:
        _say(f"failed {NO_TKINTER}")
        return 1
    title, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        root = tkinter.Tk(className="Fusedge")
    except tkinter.TclError as error:
        _say(f"failed {error}")
        return 1
    root.title(title)
    width = min(width, round(SCREEN_SHARE * root.winfo_screenwidth()))
    height = min(height, round(SCREEN_SHARE * root.winfo_screenheight()))
    root.geometry(f"{width}x{height}")
    root.minsize(*LEAST)
    root.configure(background="black")
    image = tkinter.PhotoImage(master=root)
    label = tkinter.Label(root, image=image, borderwidth=0, background="black")
    label.place(x=0, y=0)
    size = (width, height)
    input_ended = False

    def resized(event: Any) -> None:
        nonlocal size
        if event.widget is root and (event.width, event.height) != size:
            size = (event.width, event.height)
            _say(f"size {size[0]} {size[1]}")

    def readable(*_: object) -> None:
        nonlocal input_ended
        picture = _picture()
        if not picture:
            input_ended = True
            root.destroy()
            return
        image.configure(data=picture)
        root.update_idletasks()
        _say("shown")

    root.bind("<Configure>", resized)
    for key in ("q", "Q", "<Escape>"):
        root.bind(key, lambda _: root.destroy())
    root.tk.createfilehandler(sys.stdin.fileno(), tkinter.READABLE, readable)
    _say(f"size {width} {height}")
    root.mainloop()
    return 0 if input_ended else CLOSED


if __name__ == "__main__":
    sys.exit(main())

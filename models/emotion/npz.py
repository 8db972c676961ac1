"""Arrays of an .npz file, or one line that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import is_special

_BEGINNINGS = (b"PK\3\4", b"PK\5\6")  # of a zip archive, and of one that holds nothing


def read_arrays(path: Path, names: Sequence[str], hint: str) -> list[NDArray[Any]]:
    """The arrays of these names; what is pickled is not read.

    Raises FusedgeError with the hint where the file or an array is missing, damaged or of another kind.
    """
    try:
        if is_special(path):
            raise ValueError("it is no regular file")
        with path.open("rb") as content:
            if content.read(4) not in _BEGINNINGS:  # what NumPy would take for pickled
                raise ValueError("it is no .npz file, which is a zip archive of arrays")
        with np.load(path, allow_pickle=False) as file:
            lacking = [name for name in names if name not in file]
            if lacking:
                raise ValueError(f"it has no array {' and no array '.join(lacking)}")
            arrays = [file[name] for name in names]
        for name, array in zip(names, arrays, strict=True):
            # What is not packed as an array comes as the bytes that lie there.
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
        return arrays
    except FileNotFoundError:
        raise FusedgeError("is missing", where=str(path), hint=hint) from None
    except Exception as error:  # of damage, zipfile, zlib and NumPy raise what they do not document
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).partition("\n")[0] or type(error).__name__
        raise FusedgeError(f"cannot be read: {reason}", where=str(path), hint=hint) from error

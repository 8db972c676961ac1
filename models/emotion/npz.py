"""Arrays of an .npz file, or one line that says why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from fusedge.bundle.errors import FusedgeError


def read_arrays(path: Path, names: Sequence[str], hint: str) -> list[NDArray[Any]]:
    """The arrays of these names; what is pickled is not read.

    Raises FusedgeError with the hint where the file or an array is missing, damaged or of another kind.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, NpzFile):
            raise ValueError("it is one array, no archive of several")
        with file:
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
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FusedgeError(f"cannot be read: {reason}", where=str(path), hint=hint) from error

"""A module as another process would load it, later."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest


def loaded_anew(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same source, executed once more; the module that is there stays."""
    assert module.__file__ is not None
    name = f"{module.__name__}_anew"
    spec = importlib.util.spec_from_file_location(name, module.__file__)
    assert spec is not None and spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, anew)
    spec.loader.exec_module(anew)
    return anew

"""Settings that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# The gate is repeatable; `HYPOTHESIS_PROFILE=search make test` looks for new counterexamples.
settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
settings.register_profile("search", deadline=None, database=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
set_hypothesis_home_dir(Path(__file__).parents[1] / ".pytest_cache/hypothesis")

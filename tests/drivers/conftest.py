"""These tests need the devices of the guest, so only a run in the guest collects them."""

from __future__ import annotations

import os

collect_ignore = [] if "FUSEDGE_GUEST" in os.environ else ["guest_tests"]

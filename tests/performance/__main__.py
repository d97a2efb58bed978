"""`make perf`: every bound as measured against required; exit code 1 when one is missed."""

from __future__ import annotations

import sys

from tests.performance.bounds import measure_all

if __name__ == "__main__":
    sys.exit(0 if all(bound.passes for bound in measure_all()) else 1)

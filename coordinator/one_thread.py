"""One thread for every numerical library: miners share their machine, and results must not depend on its cores."""

from __future__ import annotations

import os
from typing import Final

_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def limit_threads() -> None:
    """Set the limit where the user has set none. The libraries read it when numpy loads, so call this before."""
    for name in _VARIABLES:
        os.environ.setdefault(name, "1")

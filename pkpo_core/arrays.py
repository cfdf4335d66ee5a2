"""The arrays the mathematics is written in."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float64s: TypeAlias = NDArray[np.float64]
Int64s: TypeAlias = NDArray[np.int64]
#: Where in another array something is. Unsigned, since kernels need no code for negative indices then, which makes them
#: vectorise, and saves half the time of small groups.
Positions: TypeAlias = NDArray[np.uint64]
Flags: TypeAlias = NDArray[np.bool_]
#: Of groups: values of GroupStatus.
Statuses: TypeAlias = NDArray[np.uint8]

"""Running values within the groups of a sorted table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Numbers = npt.NDArray[np.int64]


def running_maximum(ids: _Numbers, values: _Numbers) -> _Numbers:
    """Of each row, the largest value up to it in its group; rows of a group stand together, groups in the order of their ids, from 0.

    >>> running_maximum(np.array([0, 0, 0, 1, 1]), np.array([5, 9, 7, 1, 0])).tolist()
    [5, 9, 9, 1, 1]
    """
    by_value = np.argsort(values)
    rank = np.empty(len(values), np.int64)
    rank[by_value] = np.arange(len(values))
    # Ranks are small: a number that also has the group fits, so that the running maximum begins anew with each one.
    base = ids * len(values)
    largest: _Numbers = values[by_value[np.maximum.accumulate(base + rank) - base]]
    return largest

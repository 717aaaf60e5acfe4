"""Where the pages of a Python object are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .categories import PAGE_SIZE


def _byte_bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    low = high = int(array.__array_interface__["data"][0])
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def as_array(obj: Any) -> npt.NDArray[Any]:
    """A NumPy view of any buffer, without a copy; TypeError where `obj` is none."""
    if isinstance(obj, np.ndarray):
        return obj
    try:
        view = memoryview(obj)
    except TypeError:
        raise TypeError(
            f"{type(obj).__name__} has no memory to look at: give a buffer (array, mmap, bytearray)"
        ) from None
    return np.frombuffer(view, np.uint8) if view.contiguous and view.nbytes else np.asarray(view)


def span(obj: Any) -> tuple[int, int]:
    """The pages that the memory of a buffer (array, mmap, bytearray, memoryview) touches.

    Returns (start, end): page-aligned addresses in bytes, end exclusive. A strided array spans
    everything from its first to its last byte. Raises TypeError for an object without a buffer,
    ValueError for an empty one.
    """
    array = as_array(obj)
    if array.size == 0 or array.itemsize == 0:
        raise ValueError("an empty buffer touches no page")
    low, high = _byte_bounds(array)
    return low // PAGE_SIZE * PAGE_SIZE, -(-high // PAGE_SIZE) * PAGE_SIZE

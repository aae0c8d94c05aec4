"""Large pages for memory that is about to be filled.

Fresh memory comes in pages of 4 KiB, each with a trip into the kernel when it is first written to: for a
state of gigabytes that takes longer than filling it. Linux gives pages of 2 MiB to those who ask for them
(madvise(2), MADV_HUGEPAGE), where the machine allows it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from typing import Any, Final

_LARGE_PAGE: Final = 2 << 20
_WORTH_ASKING: Final = 2 * _LARGE_PAGE


def prefer_large(address: int, size: int) -> None:
    """Ask for large pages for `size` bytes from `address`. Where they are not to be had, nothing happens."""
    advice, madvise = getattr(mmap, "MADV_HUGEPAGE", None), _madvise()
    start = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    length = (address + size) // _LARGE_PAGE * _LARGE_PAGE - start
    if size >= _WORTH_ASKING and length > 0 and madvise and advice is not None:
        madvise(start, length, advice)


def prefer_large_for(memory: memoryview) -> None:
    """The same for memory that can be written to."""
    if memory.nbytes >= _WORTH_ASKING:
        prefer_large(ctypes.addressof(ctypes.c_char.from_buffer(memory)), memory.nbytes)


@functools.cache
def _madvise() -> Any:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function

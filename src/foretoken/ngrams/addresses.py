"""Arrays by their addresses, so that one compiled loop can go over the stores of many sequences.

numba takes a fixed number of arrays, of which each costs time at every call. The stores of a batch are handed over in
one table instead, see ``arrays.addresses_of``. Whoever makes such a table keeps the arrays alive, and writes the row
anew where an array is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import from_dtype, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array


def viewer(dtype: Any, width: int | None = None) -> Callable[[int, int], Any]:
    """A function for compiled code: the array of an address and a length.

    Args:
        dtype: Of the array.
        width: The length of its second axis. If None, it has none.
    """
    array_type = types.Array(from_dtype(np.dtype(dtype)), 1 if width is None else 2, "C")

    @intrinsic
    def view(typing_context: Any, address: Any, length: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = make_array(array_type)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
            number = context.get_constant
            shape = [arguments[1]] if width is None else [arguments[1], number(types.intp, width)]
            strides = (
                [number(types.intp, size)] if width is None else [number(types.intp, n) for n in (size * width, size)]
            )
            populate_array(
                array,
                data=builder.inttoptr(arguments[0], array.data.type),
                shape=shape,
                strides=strides,
                itemsize=number(types.intp, size),
                meminfo=None,
            )
            return array._getvalue()

        return array_type(types.int64, types.int64), generate

    return cast(Callable[[int, int], Any], view)

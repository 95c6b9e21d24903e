"""Lets vLLM 0.32 start an engine in a process that has imported numba."""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import Any


def allow_numba() -> None:
    """Replace the search for kernels by one that passes by llvmlite's objects.

    On a CPU vLLM looks at every global of every module for kernels to replace. llvmlite's library answers that search
    with a function in the place of a dictionary, and the worker ends with an AttributeError. So a second engine in a
    process could not start once the first has drafted, nor any after ``import numba``.
    """
    from vllm.triton_utils import dispatcher

    dispatcher._rebind_kernels = _rebind_kernels


def _rebind_kernels(overrides: list[tuple[Any, Any]]) -> None:
    """What the function of this name in vLLM does, for the values that have a dictionary of their own."""
    wrappers = {id(kernel): wrapper for kernel, wrapper in overrides}
    for module in list(sys.modules.values()):
        for name, value in list((getattr(module, "__dict__", None) or {}).items()):
            if id(value) in wrappers:
                setattr(module, name, wrappers[id(value)])
                continue
            own = getattr(value, "__dict__", None)
            wrapper = wrappers.get(id(own.get("kernel"))) if isinstance(own, dict | MappingProxyType) else None
            if wrapper is not None:
                value.kernel = wrapper
                if not isinstance(value, type):
                    value.__dict__.pop("_kernel_arg_names", None)

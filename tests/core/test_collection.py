"""The garbage collector, paused."""

from __future__ import annotations

import gc

import pytest

from foretoken.core.collection import collection_paused


@pytest.mark.parametrize("on", [True, False])
def test_it_is_off_meanwhile_and_then_as_before(on):
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with pytest.raises(ZeroDivisionError), collection_paused():
            assert not gc.isenabled()
            _ = 1 / 0
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()

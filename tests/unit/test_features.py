"""What the kernel can do, as `supports` tells it."""

import pytest

import mmkit
from mmkit import Advice, MapFlag
from mmkit.flags import MemfdFlag


def test_support_is_told_apart_by_type_and_not_by_number():
    assert mmkit.supports(Advice.NORMAL)
    with pytest.raises(ValueError, match="no probe"):
        mmkit.supports(MapFlag.FIXED)
    mmkit.supports(MemfdFlag.EXEC)
    with pytest.raises(ValueError, match="no probe"):
        mmkit.supports(MapFlag.FIXED)

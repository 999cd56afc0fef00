"""Fixtures of the Region tests."""

import pytest

from meeting import fresh_name
from mmkit import Region
from support import PAGE


@pytest.fixture
def region():
    with Region.anonymous(4 * PAGE) as region:
        yield region


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (4 * PAGE // 256))
    return path


@pytest.fixture
def name():
    with fresh_name() as name:
        yield name

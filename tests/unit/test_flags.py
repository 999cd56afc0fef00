import mmap

import pytest

from mmkit import flags
from mmkit.flags import Advice, MapFlag, MapType, Prot, ShmCommand


def test_values_agree_with_the_standard_library_where_it_has_them():
    for prefix, kind in (("MADV_", Advice), ("PROT_", Prot)):
        for name in (name for name in dir(mmap) if name.startswith(prefix)):
            member = name.removeprefix(prefix)
            if hasattr(kind, member):
                assert kind[member] == getattr(mmap, name)
    for name in (
        "SHARED",
        "PRIVATE",
        "ANONYMOUS",
        "POPULATE",
        "DENYWRITE",
        "EXECUTABLE",
        "STACK",
        "NORESERVE",
    ):
        if hasattr(mmap, f"MAP_{name}"):
            assert MapFlag[name] == getattr(mmap, f"MAP_{name}")


def test_the_mapping_type_is_a_field_and_not_two_bits():
    both = MapFlag.SHARED_VALIDATE | MapFlag.SYNC
    assert both.type is MapType.SHARED_VALIDATE
    assert MapFlag.SHARED not in both
    assert MapFlag.SHARED_VALIDATE in both
    assert list(both) == [MapFlag.SHARED_VALIDATE, MapFlag.SYNC]
    assert str(both) == "SHARED_VALIDATE|SYNC"


def test_the_huge_page_size_is_a_field():
    flags_ = MapFlag.PRIVATE | MapFlag.ANONYMOUS | MapFlag.HUGETLB | MapFlag.HUGE_2MB
    assert flags_.huge_page_size == 2 << 20
    assert str(flags_) == "PRIVATE|ANONYMOUS|HUGETLB|HUGE_2MB"
    assert MapFlag.HUGE_1GB not in flags_
    assert MapFlag.HUGE_2MB in flags_
    assert str(MapFlag.UNINITIALIZED) == "UNINITIALIZED"
    assert MapFlag.UNINITIALIZED.huge_page_size is None


def test_a_huge_page_size_without_a_name_is_decoded_too():
    assert str(MapFlag.HUGETLB | MapFlag(22 << 26)) == "HUGETLB|HUGE_4MB"


@pytest.mark.parametrize("name", [n for n in flags.__all__ if n != "MapFlag"])
def test_unknown_values_are_kept(name):
    kind = getattr(flags, name)
    assert int(kind(0x4000_0000)) == 0x4000_0000


def test_unknown_bits_of_a_mapping_are_kept_and_shown():
    assert str(MapFlag.PRIVATE | MapFlag(1 << 23)) == "PRIVATE|0x800000"


def test_an_unknown_advice_says_so():
    assert Advice(77).name == "UNKNOWN_77"
    with pytest.raises(ValueError):
        Advice("x")  # type: ignore[arg-type]


def test_commands_have_the_kernels_numbers():
    assert [int(command) for command in ShmCommand] == [0, 1, 2, 3, 11, 12, 13, 14, 15]

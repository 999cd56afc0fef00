from typing import TypeVar
from weakref import ReferenceType

from mmkit._native.region import MappedRegion

_Region = TypeVar("_Region", bound=MappedRegion)

def publish_mapping(
    mapped: dict[tuple[int, int], ReferenceType[_Region]],
    key: tuple[int, int],
    reference: ReferenceType[_Region],
) -> _Region: ...
def forget_mapping(
    mapped: dict[tuple[int, int], ReferenceType[_Region]],
    key: tuple[int, int],
    reference: ReferenceType[_Region],
) -> None: ...

class Placed:
    _label: str
    def _remove(self) -> None: ...
    def _leave(self) -> None: ...
    @property
    def closed(self) -> bool: ...

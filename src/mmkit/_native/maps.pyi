from typing import Final, NamedTuple

DELETED: Final[int]
ESCAPED: Final[int]

class QueryUnsupportedError(Exception): ...

class Columns(NamedTuple):
    start: memoryview[int]
    end: memoryview[int]
    offset: memoryview[int]
    device: memoryview[int]
    inode: memoryview[int]
    path: memoryview[int]
    perms: memoryview[int]
    path_start: memoryview[int]
    path_length: memoryview[int]
    path_perms: memoryview[int]
    path_facts: memoryview[int]
    path_bytes: bytes
    escaped: int
    malformed: int
    torn: int

class Answer(NamedTuple):
    start: int
    end: int
    offset: int
    device: int
    inode: int
    perms: int
    path: bytes
    deleted: bool

def read(descriptor: int) -> Columns: ...
def parse(text: bytes) -> Columns: ...
def query(descriptor: int, address: int) -> Answer | None: ...

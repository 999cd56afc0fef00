from _typeshed import ReadableBuffer

NEEDLE_MIN: int
NEEDLE_MAX: int

def hand_over(needle: ReadableBuffer, fd: int) -> tuple[int, int]: ...

"""A small database in one mapped file: values are appended, an index finds them, and a crash loses nothing.

A value goes into the file in two steps, each made durable by msync before the next begins: first the record,
at the end, where nobody looks; then the index entry that points to it. A process that dies between the two
has changed nothing. It is killed there, and once more in a database that takes the steps in the wrong order.
(A kill loses nothing that was stored, for the kernel has it; a power cut loses what was not synced.
The order is for both.)
In C: mmap(2), msync(2), ftruncate(2), rename(2). Belongs to the chapter "Mapping" (docs/mapping.md).

      page 0                                     page 1 …
      ┌───────┬─────┬───────────────────────┐    ┌──────────────┬──────────────┬─ ─ ─
      │ magic │ end │ 62 buckets: where the │    │ checksum     │ checksum     │
      │       │     │ newest record is      │    │ previous ──────▶ older      │   free
      └───────┴─────┴───────────┼───────────┘    │ key, value   │ key, value   │
                                └───────────────▶└──────────────┴──────────────┴─ ─ ─
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import mmkit
from mmkit import PAGE_SIZE, Region

MAGIC = int.from_bytes(b"mmkv0001", "little")
END, FIRST_BUCKET, BUCKETS = 1, 2, 62  # words of eight bytes in page 0; word 0 is MAGIC
RECORD = struct.Struct("=IHHQ")  # checksum of what follows, length of key, of value, previous in its bucket
GONE = 0xFFFF  # as the length of a value: the key was deleted


class Database:
    """Keys and values, both bytes. The newest record of a key counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            path.write_bytes(struct.pack("=QQ", MAGIC, PAGE_SIZE) + bytes(PAGE_SIZE - 16))
        self.region = Region.file(path, mode="r+")
        if self.word(0) != MAGIC:
            self.region.close()
            raise mmkit.CorruptError(f"{path} is no such database")

    def word(self, number: int) -> int:
        """Return one of the words of page 0."""
        with self.region.view(0, PAGE_SIZE) as view, view.cast("Q") as words:
            return words[number]

    def set_word(self, number: int, value: int) -> None:
        """Store a word: eight aligned bytes, which a killed process leaves old or new, never mixed."""
        with self.region.view(0, PAGE_SIZE) as view, view.cast("Q") as words:
            words[number] = value

    def put(self, key: bytes, value: bytes | None, die: bool = False, wrong: bool = False) -> None:
        """Store a value, or None: delete the key. To show it, die half-way, or in the wrong order."""
        bucket = FIRST_BUCKET + zlib.crc32(key) % BUCKETS
        length = GONE if value is None else len(value)
        if value is not None and length >= GONE:
            raise ValueError(f"a value has less than {GONE} bytes, and this one {length}")
        rest = RECORD.pack(0, len(key), length, self.word(bucket))[4:] + key + (value or b"")
        record = zlib.crc32(rest).to_bytes(4, "little") + rest
        at = self.word(END)
        end = at + -(-len(record) // 8) * 8
        while end > len(self.region):
            self.region.resize(len(self.region) * 2)  # the file by ftruncate(2), and the mapping with it

        def write_record() -> None:
            self.region[at : at + len(record)] = record
            self.region.flush(at, len(record))  # msync(2): on the disk, before anything points to it

        def point_to_it() -> None:
            self.set_word(END, end)
            self.set_word(bucket, at)  # the commit: one store
            self.region.flush(0, PAGE_SIZE)

        first, second = (point_to_it, write_record) if wrong else (write_record, point_to_it)
        first()
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        second()

    def record(self, at: int) -> tuple[bytes, bytes | None, int]:
        """Return key, value and the place of the previous record in the bucket."""
        checksum, key_length, length, previous = RECORD.unpack_from(self.region, at)
        start, end = at + RECORD.size, at + RECORD.size + key_length + (0 if length == GONE else length)
        if zlib.crc32(self.region[at + 4 : end]) != checksum:
            raise mmkit.CorruptError(f"the record at {at:#x} was not written whole")
        key = self.region[start : start + key_length]
        return key, None if length == GONE else self.region[start + key_length : end], previous

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key, or None."""
        at = self.word(FIRST_BUCKET + zlib.crc32(key) % BUCKETS)
        while at:
            found, value, at = self.record(at)
            if found == key:
                return value
        return None

    def live(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield place, key and value of each record that counts."""
        for bucket in range(FIRST_BUCKET, FIRST_BUCKET + BUCKETS):
            at, seen = self.word(bucket), set()
            while at:
                key, value, previous = self.record(at)
                if key not in seen and value is not None:
                    yield at, key, value
                seen.add(key)
                at = previous

    def compact(self) -> None:
        """Write what counts into a new file, and have that take the place of this one at once."""
        beside = self.path.with_suffix(".new")
        beside.unlink(missing_ok=True)  # of a compaction that was killed: it may have what is deleted by now
        with contextlib.closing(Database(beside)) as new:
            for _, key, value in self.live():
                new.put(key, value)
        beside.rename(self.path)  # rename(2): everybody finds the old file or the new one
        self.close()
        self.region = Region.file(self.path, mode="r+")

    def draw(self, page: int) -> str:
        """Return a picture of a page of records: 64 cells, each for 64 bytes."""
        counts = {at for at, _, _ in self.live()}
        cells, at = ["·"] * (len(self.region) // 64), PAGE_SIZE
        while at < self.word(END):
            _, key_length, length, _ = RECORD.unpack_from(self.region, at)
            end = at + -(-(RECORD.size + key_length + (0 if length == GONE else length)) // 8) * 8
            for cell in range(at // 64, -(-end // 64)):
                cells[cell] = "█" if at in counts or cells[cell] == "█" else "░"
            at = end
        return f"page {page} │{''.join(cells[page * PAGE_SIZE // 64 :][:64])}│  █ counts  ░ outdated  · free"

    def close(self) -> None:
        """Give the mapping back; the file stays."""
        self.region.close()


def main() -> None:
    """Use a database, kill who writes to it, and compact it."""
    with tempfile.TemporaryDirectory(prefix="mmkit-example-") as folder:
        path = Path(folder, "fruit.db")
        with contextlib.closing(Database(path)) as db:
            for number in range(12):
                db.put(b"fruit %d" % number, b"value %d " % number * 20)
            print(f"12 values are stored; 'fruit 3' has {len(db.get(b'fruit 3') or b'')} bytes")
            print(db.draw(1))
            for number in range(6):
                db.put(b"fruit %d" % number, b"a better value")
            db.put(b"fruit 11", None)
            print("6 are replaced and one is deleted: nothing is written over")
            print(db.draw(1))
        with contextlib.closing(Database(path)) as db:
            keys = len(list(db.live()))
            print(f"closed and opened again: {keys} keys, 'fruit 3' is {db.get(b'fruit 3')!r}")

        print("\nA child replaces 'fruit 7', and is killed between its two syncs")
        copy = Path(folder, "copy.db")
        copy.write_bytes(path.read_bytes())
        print(f"  record first, then index: {after_a_crash(path, wrong=False)}")
        print(f"  the wrong way round:      {after_a_crash(copy, wrong=True)}")

        print("\nCompaction")
        with contextlib.closing(Database(path)) as db:
            before, end = sorted((key, value) for _, key, value in db.live()), db.word(END)
            db.compact()
            after = sorted((key, value) for _, key, value in db.live())
            old, new = end - PAGE_SIZE, db.word(END) - PAGE_SIZE
            print(f"  from {old} to {new} bytes; the same: {before == after}")
            print(db.draw(1))


def after_a_crash(path: Path, wrong: bool) -> str:
    """Kill a child in the middle of a put; say what is found afterwards."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            Database(path).put(b"fruit 7", b"a value that is never finished", True, wrong)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    with contextlib.closing(Database(path)) as db:
        try:
            return f"'fruit 7' is still {(db.get(b'fruit 7') or b'')[:15]!r}…, {len(list(db.live()))} keys"
        except mmkit.CorruptError as error:
            return f"CorruptError: {error}"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError), sys.stdout:  # whoever reads may leave: | head
        main()

"""How two processes can pass messages: each way a class, with one link there and one back.

A way is made before the fork; `open` then runs in either process and gives its `Ends`. Peers that are not
installed have no class in `ways()`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import mmap
import multiprocessing
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any, NamedTuple

import numpy as np

import mmkit
from mmkit.shared.channel import SPIN

LARGE = 1 << 20
#: What may be under way, in bytes: the same for all that can say it.
CAPACITY = 4 * LARGE
_FOR_EVER = 1e6


class Ends(NamedTuple):
    """What one process does: send and receive bytes; fill and send a large message; add one up."""

    send: Callable[[bytes], object]
    recv: Callable[[], Any]
    send_filled: Callable[[int], None] | None
    recv_sum: Callable[[], int] | None


class Way:
    """A way to pass messages. `spins`: whoever waits looks again and again before it sleeps."""

    def __init__(self, scope: ExitStack, spins: bool) -> None:
        self.scope = scope
        self.spins = spins

    def open(self, child: bool) -> Ends:
        raise NotImplementedError


def words(buffer: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:  # noqa: ANN401
    return np.frombuffer(buffer, np.uint64)


def _unique(prefix: str) -> str:
    return f"{prefix}{os.getpid()}_{secrets.token_hex(4)}"


class Mmkit(Way):
    single = True

    def __init__(self, scope: ExitStack, spins: bool) -> None:
        super().__init__(scope, spins)
        self.channels = [
            scope.enter_context(
                mmkit.Channel(
                    _unique("mmkit_bench_"),
                    CAPACITY,
                    create=True,
                    single=self.single,
                    spin=SPIN if spins else 0,
                )
            )
            for _ in range(2)
        ]

    def open(self, child: bool) -> Ends:
        out, back = self.channels[::-1] if child else self.channels
        loan, recv_view = out.loan, back.recv_view

        def send_filled(value: int) -> None:
            with loan(LARGE) as view:
                words(view).fill(value)

        def recv_sum() -> int:
            with recv_view() as view:
                return int(words(view).sum())

        return Ends(out.send, back.recv, send_filled, recv_sum)


class MmkitMany(Mmkit):
    single = False


class Pipe(Way):
    def __init__(self, scope: ExitStack, spins: bool) -> None:
        super().__init__(scope, spins)
        self.connections = multiprocessing.Pipe()
        for connection in self.connections:
            scope.callback(connection.close)

    def open(self, child: bool) -> Ends:
        connection = self.connections[child]
        outgoing, incoming = np.zeros(LARGE // 8, np.uint64), np.zeros(LARGE // 8, np.uint64)
        send, recv_into = connection.send_bytes, connection.recv_bytes_into

        def send_filled(value: int) -> None:
            outgoing.fill(value)
            send(outgoing)  # type: ignore[arg-type]

        def recv_sum() -> int:
            recv_into(incoming)
            return int(incoming.sum())

        return Ends(send, connection.recv_bytes, send_filled, recv_sum)


class Queue(Way):
    def __init__(self, scope: ExitStack, spins: bool) -> None:
        super().__init__(scope, spins)
        self.queues: list[Any] = [multiprocessing.Queue() for _ in range(2)]
        for queue in self.queues:
            scope.callback(queue.close)

    def open(self, child: bool) -> Ends:
        out, back = self.queues[::-1] if child else self.queues
        outgoing = np.zeros(LARGE // 8, np.uint64)

        def send_filled(value: int) -> None:
            outgoing.fill(value)
            out.put(outgoing.tobytes())

        return Ends(out.put, back.get, send_filled, lambda: int(words(back.get()).sum()))


class FasterFifo(Way):
    def __init__(self, scope: ExitStack, spins: bool) -> None:
        faster_fifo: Any = importlib.import_module("faster_fifo")

        super().__init__(scope, spins)
        self.queues = [faster_fifo.Queue(max_size_bytes=CAPACITY) for _ in range(2)]

    def open(self, child: bool) -> Ends:
        out, back = self.queues[::-1] if child else self.queues
        outgoing = np.zeros(LARGE // 8, np.uint64)
        put, get = out.put, back.get

        def send_filled(value: int) -> None:
            outgoing.fill(value)
            put(outgoing.tobytes(), True, _FOR_EVER)

        # Its default is 10 s, and a stopped process waits longer.
        return Ends(
            lambda message: put(message, True, _FOR_EVER),
            lambda: get(True, _FOR_EVER),
            send_filled,
            lambda: int(words(get(True, _FOR_EVER)).sum()),
        )


class Zmq(Way):
    def __init__(self, scope: ExitStack, spins: bool) -> None:
        super().__init__(scope, spins)
        folder = scope.enter_context(tempfile.TemporaryDirectory())
        self.address = f"ipc://{folder}/socket"

    def open(self, child: bool) -> Ends:
        zmq: Any = importlib.import_module("zmq")

        context = zmq.Context()
        socket = context.socket(zmq.PAIR)
        if child:
            socket.connect(self.address)
        else:
            socket.bind(self.address)
            self.scope.callback(context.destroy, linger=0)
        outgoing = np.zeros(LARGE // 8, np.uint64)

        def send_filled(value: int) -> None:
            outgoing.fill(value)
            socket.send(outgoing)

        return Ends(
            socket.send, socket.recv, send_filled, lambda: int(words(socket.recv(copy=False).buffer).sum())
        )


class PosixIpc(Way):
    """Slots in shared memory, a semaphore that counts the full ones and one that counts the free ones."""

    def __init__(self, scope: ExitStack, spins: bool) -> None:
        posix_ipc: Any = importlib.import_module("posix_ipc")

        super().__init__(scope, spins)
        self.memory = [mmap.mmap(-1, CAPACITY) for _ in range(2)]
        self.full, self.free = [
            [posix_ipc.Semaphore(_unique("/bench"), posix_ipc.O_CREX, initial_value=first) for _ in range(2)]
            for first in (0, 1024)
        ]
        self.whole = [posix_ipc.Semaphore(_unique("/bench"), posix_ipc.O_CREX) for _ in range(2)]
        for semaphore in (*self.full, *self.free, *self.whole):
            scope.callback(semaphore.unlink)

    def open(self, child: bool) -> Ends:
        to, back = (1, 0) if child else (0, 1)
        outgoing, incoming = self.memory[to], self.memory[back]
        slots = [slice(i * 64, i * 64 + 64) for i in range(1024)]
        sent, received = count(), count()
        get_free, set_full = self.free[to].acquire, self.full[to].release
        get_full, set_free = self.full[back].acquire, self.free[back].release
        said, told = self.whole[to], self.whole[back]
        large_out, large_in = words(outgoing)[: LARGE // 8], words(incoming)[: LARGE // 8]

        def send(message: bytes) -> None:
            get_free()
            outgoing[slots[next(sent) & 1023]] = message
            set_full()

        def recv() -> bytes:
            get_full()
            message = incoming[slots[next(received) & 1023]]
            set_free()
            return message

        def send_filled(value: int) -> None:
            large_out.fill(value)
            said.release()

        def recv_sum() -> int:
            told.acquire()
            return int(large_in.sum())

        return Ends(send, recv, send_filled, recv_sum)


class Iceoryx2(Way):
    """Publish and subscribe with slices of bytes; who does not spin waits for an event of its Listener."""

    def __init__(self, scope: ExitStack, spins: bool) -> None:
        super().__init__(scope, spins)
        self.name = _unique("mmkit_bench_")
        scope.callback(self._clean_up)

    def _clean_up(self) -> None:
        """Remove what the killed process has left in /dev/shm; its own goes with its objects."""
        node, _ = self.kept
        node.try_cleanup_dead_nodes()

    def open(self, child: bool) -> Ends:
        iceoryx2: Any = importlib.import_module("iceoryx2")

        iceoryx2.set_log_level(iceoryx2.LogLevel.Fatal)
        mode = iceoryx2.SignalHandlingMode.Disabled
        node = iceoryx2.NodeBuilder.new().signal_handling_mode(mode).create(iceoryx2.ServiceType.Ipc)

        def service(direction: str, longest: int) -> Any:  # noqa: ANN401
            return (
                node.service_builder(iceoryx2.ServiceName.new(f"{self.name}/{direction}/{longest}"))
                .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
                .enable_safe_overflow(False)
                .subscriber_max_buffer_size(1024 if longest == 64 else 2)
                .open_or_create()
            )

        def event(direction: str) -> Any:  # noqa: ANN401
            name = iceoryx2.ServiceName.new(f"{self.name}/{direction}")
            return node.service_builder(name).event().open_or_create()

        to, back = ("back", "there") if child else ("there", "back")
        ports = {}
        for longest in (64, LARGE):
            publisher = service(to, longest).publisher_builder().initial_max_slice_len(longest)
            publisher = publisher.backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
            ports[longest] = publisher.create(), service(back, longest).subscriber_builder().create()
        (publisher, subscriber), (large_publisher, large_subscriber) = ports[64], ports[LARGE]
        notify = event(to).notifier_builder().create().notify
        blocking_wait = event(back).listener_builder().create().blocking_wait

        def wait() -> None:
            # It ends by the signal with which the benchmark lets a stopped process go on.
            with contextlib.suppress(iceoryx2.ListenerWaitError):
                blocking_wait()

        spins, memmove, string_at = self.spins, ctypes.memmove, ctypes.string_at

        def receive(subscriber: Any) -> Any:  # noqa: ANN401
            while not (sample := subscriber.receive()):
                if not spins:
                    wait()
            return sample

        def send(message: bytes) -> None:
            sample = publisher.loan_slice_uninit(64)
            memmove(sample.payload_ptr, message, 64)
            sample.assume_init().send()
            if not spins:
                notify()

        def recv() -> bytes:
            sample = receive(subscriber)
            message = string_at(sample.payload_ptr, 64)
            sample.delete()
            return message

        def send_filled(value: int) -> None:
            sample = large_publisher.loan_slice_uninit(LARGE)
            words((ctypes.c_char * LARGE).from_address(sample.payload_ptr)).fill(value)
            sample.assume_init().send()
            if not spins:
                notify()

        def recv_sum() -> int:
            sample = receive(large_subscriber)
            total = int(words((ctypes.c_char * LARGE).from_address(sample.payload_ptr)).sum())
            sample.delete()
            return total

        self.kept = node, ports
        # A publisher that has no subscriber yet drops what it sends.
        while service(to, 64).dynamic_config.number_of_subscribers == 0:
            time.sleep(0.01)
        for publisher_ in (publisher, large_publisher):
            publisher_.update_connections()
        return Ends(send, recv, send_filled, recv_sum)


def ways() -> dict[str, type[Way] | None]:
    """Return all ways by name; None for those whose library is not installed."""

    def if_there(module: str, way: type[Way]) -> type[Way] | None:
        return way if importlib.util.find_spec(module) else None

    return {
        "mmkit, single": Mmkit,
        "mmkit": MmkitMany,
        "Pipe": Pipe,
        "Queue": Queue,
        "faster-fifo": if_there("faster_fifo", FasterFifo),
        "pyzmq": if_there("zmq", Zmq),
        "posix_ipc": if_there("posix_ipc", PosixIpc),
        "iceoryx2": if_there("iceoryx2", Iceoryx2),
    }


__all__ = ["LARGE", "Ends", "Way", "ways"]

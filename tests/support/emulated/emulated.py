"""`make arm` and `make amx`: a pytest plugin that puts kernels built for another machine, and run by an emulator, in
place of `sae_kernels._cpu`.

Python and torch stay on this machine. Each call of the extension goes to server.cpp, built for the other machine, with
the bytes of every tensor it points to, and the bytes that come back are written over them. SAE_KERNELS_EMULATED is the
command that runs the server.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

HELD = 512  # storages whose addresses are known: far more than one call has
Storages = OrderedDict[int, torch.UntypedStorage]  # by address; kept alive, so that no address means two of them


class Server:
    """The other machine."""

    def __init__(self, command: str) -> None:
        self.calls = 0
        self._process = subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def flush(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.flush()

    def take(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) != count:
            raise AssertionError(f"the emulated kernels ended with status {self._process.wait()}")
        return data

    def numbers(self) -> list[int]:
        count = self._count()
        return list(struct.unpack(f"<{count}q", self.take(8 * count)))

    def close(self) -> None:
        """No more calls: the server ends at the end of its input."""
        self._process.communicate()

    def words(self) -> list[str]:
        return [self.take(self._count()).decode() for _ in range(self._count())]

    def _count(self) -> int:
        return struct.unpack("<Q", self.take(8))[0]


class Emulated(ModuleType):
    """In place of the extension."""

    def __init__(self, command: str) -> None:
        super().__init__("sae_kernels._cpu")
        self.server, self.storages = Server(command), Storages()

    def want_huge_pages(self, address: int, size: int) -> None:
        """Advice, which an emulator has no use for."""

    def isas(self) -> list[str]:
        return self._call("isas")[1]

    def isa(self) -> str:
        return self._call("isa")[1][0]

    def fast_bf16(self) -> bool:
        return self._call("fast_bf16")[0] == [1]

    def flush_denormals(self, flush: bool, threads: int) -> bool:
        """Here too: kernels and torch run on one machine, as far as tests know."""
        torch.set_flush_denormal(flush)
        return self._call("flush_denormals", flush, threads)[0] == [1]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any) -> Any:
            numbers = self._call(name, *args)[0]
            return numbers[0] if len(numbers) == 1 else tuple(numbers) or None

        return call

    def know(self, tensor: torch.Tensor) -> None:
        """Its address may be in the next calls."""
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage
        self.storages.move_to_end(storage.data_ptr())
        if len(self.storages) > HELD:
            self.storages.popitem(last=False)

    def _block(self, address: int) -> int | None:
        """The start of the storage that holds this address."""
        for start, storage in reversed(self.storages.items()):
            if start <= address < start + storage.nbytes():
                return start
        return None

    def _call(self, name: str, *args: Any) -> tuple[list[int], list[str]]:
        blocks: list[int] = []
        packed: list[bytes] = []
        for arg in args:
            start = self._block(arg) if isinstance(arg, int) and arg > 1 << 16 else None
            if start is not None:
                if start not in blocks:
                    blocks.append(start)
                packed.append(struct.pack("<cQQ", b"p", blocks.index(start), arg - start))
            elif isinstance(arg, float):
                packed.append(struct.pack("<cd", b"d", arg))
            elif isinstance(arg, int):
                packed.append(struct.pack("<cq", b"i", arg))
            else:
                packed.append(struct.pack(f"<cQ{len(arg)}q", b"l", len(arg), *arg))
        before = [ctypes.string_at(start, self.storages[start].nbytes()) for start in blocks]
        self.server.send(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<Q", len(blocks)))
        for start, data in zip(blocks, before, strict=True):
            self.server.send(struct.pack("<QQ", start, len(data)) + data)
        self.server.send(struct.pack("<Q", len(args)) + b"".join(packed))
        self.server.flush()
        self.server.calls += 1
        answer = self.server.numbers(), self.server.words()
        for start, data in zip(blocks, before, strict=True):
            now = self.server.take(len(data))
            if now != data:
                ctypes.memmove(start, now, len(now))
        return answer


emulated = Emulated(os.environ["SAE_KERNELS_EMULATED"])
sys.modules["sae_kernels._cpu"] = emulated
_data_ptr = torch.Tensor.data_ptr


def _known(self: torch.Tensor) -> int:
    emulated.know(self)
    return _data_ptr(self)


torch.Tensor.data_ptr = _known  # how the package asks for an address: nothing else can reach the extension


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How much of it there was: none would mean that something else was tested."""
    terminalreporter.write_line(f"calls of emulated kernels: {emulated.server.calls}, on {emulated.isas()}")


def pytest_unconfigure() -> None:
    """The last thing a run does."""
    emulated.server.close()

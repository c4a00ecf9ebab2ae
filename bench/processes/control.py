"""Orders to the measuring processes and their answers: JSON lines on standard input and standard output."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from shared.errors import MidstreamError

_ROOT = Path(__file__).resolve().parents[2]
_END_SECONDS = 5.0


class Gone(MidstreamError):
    """A measuring process has ended, or did not answer in time."""


class Orders:
    """Reads orders, in the measuring process. The end of standard input ends the process: none outlives the bench."""

    def __init__(self) -> None:
        self.fd = sys.stdin.fileno()
        self._rest = b""
        self._ready: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """Returns the orders that have come since the last call. Exits at the end of standard input."""
        data = os.read(self.fd, 1 << 20)
        if not data:
            sys.exit(0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [orjson.loads(line) for line in lines if line]

    def next(self) -> dict[str, Any]:
        """Waits for the next order."""
        while not self._ready:
            self._ready = self.read()
        return self._ready.pop(0)


def answer(body: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(body) + b"\n")
    sys.stdout.buffer.flush()


@contextmanager
def errors_answered() -> Iterator[None]:
    """Sends an error to the bench as the last answer, and exits with code 1."""
    try:
        yield
    except (OSError, KeyError, ValueError) as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


class Helper:
    """A measuring process, `python -m <module>`, as the bench sees it."""

    def __init__(self, module: str, plan: Mapping[str, Any], *, log: Path, cores: set[int] | None) -> None:
        self._module = module
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
            )
        self._rest = b""
        self._answers: list[Any] = []
        self.ready: dict[str, Any] = {}
        """The answer to the plan: the process is ready."""
        if cores:
            os.sched_setaffinity(self._process.pid, cores)
        self.tell(plan)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(orjson.dumps(order) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone("has ended") from None

    def hear(self, *, within_seconds: float) -> dict[str, Any]:
        """Waits for the next answer. Raises Gone."""
        assert self._process.stdout is not None
        fd, deadline = self._process.stdout.fileno(), time.monotonic() + within_seconds
        while not self._answers:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._gone(f"did not answer within {within_seconds:g} s")
            data = os.read(fd, 1 << 20)
            if not data:
                raise self._gone("has ended")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._answers = [orjson.loads(line) for line in lines]
        answer: dict[str, Any] = self._answers.pop(0)
        if "error" in answer:
            raise Gone(f"{self._module}: {answer['error']}")
        return answer

    def ask(self, op: str, *, wait_seconds: float = 90.0, **arguments: Any) -> dict[str, Any]:
        """Sends an order and waits for its answer. Raises Gone."""
        self.tell({"op": op, **arguments})
        return self.hear(within_seconds=wait_seconds)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _gone(self, reason: str) -> Gone:
        log_text = self._log.read_text()[-1500:] if self._log.exists() else ""
        return Gone(f"{self._module} {reason}\n{log_text}".rstrip())

"""Runs several gateway processes at one port: started together, started again when one dies, ended together.

The supervisor itself serves nothing. It takes the port, gives each child a socket of its own there, and waits for
signals. A child's socket closes when the child ends, so that the kernel gives new connections to the other children; if
it stayed open, connections would wait in it for the next child. Children are not bound to cores: Redis, the workers and
the network's interrupts run beside them, and the kernel knows better than we which core is free.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import multiprocess, values

from gateway.listening import CAN_SHARE, beside, is_reserved, listens
from shared.child_processes import Child, end_all, how_it_ended
from shared.errors import Unusable
from shared.settings import Settings

logger = logging.getLogger(__name__)

_EARLY_ENDS_MAX = 10
"""After so many early ends of a child in a row the supervisor ends: after about 20 s of pauses, or 45 s if Redis is away,
which is longer than a failover takes."""
_LOOK_SECONDS = 0.02
"""How often a starting child's socket is looked at, whether it listens yet."""
_KILL_SECONDS = 5.0
"""A child that does not end is killed so long after its time to drain."""
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def processes_wanted(settings: Settings) -> int:
    """Returns how many processes this gateway is to have."""
    wanted = settings.gateway_processes or cores()
    if wanted > 1 and not CAN_SHARE:
        if settings.gateway_processes:
            logger.warning(
                "this system does not spread connections over processes: one gateway process and not %d", wanted
            )
        return 1
    return wanted


def cores(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns how many cores this process may use, at least 1: by its affinity, and by its container's CPU limit.

    That limit is `cpu.max` (cgroup v2) of the process's group or of one above, rounded down to whole cores. Without
    such a limit or such files the affinity alone counts.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        (own,) = [line[3:] for line in membership.read_text().splitlines() if line.startswith("0::")]
        group = mounted / own.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):
                quota, period = (folder / "cpu.max").read_text().split()
                available = min(available, int(quota) // int(period))
            if folder == mounted:
                break
    return max(1, available)


@dataclass(kw_only=True)
class _NumberedChild(Child):
    number: int
    not_yet_listening: socket.socket | None = None
    """The socket of a child that is starting."""


class Supervisor:
    """Keeps `count` processes of `command` running at the port of `reserved`, a socket of `listening.reserve`."""

    def __init__(self, settings: Settings, count: int, reserved: socket.socket, command: Sequence[str]) -> None:
        if not is_reserved(reserved):
            raise Unusable(
                "an inherited socket that listens already cannot be shared: MIDSTREAM_GATEWAY_PROCESSES=1 serves on it"
            )
        self._settings = settings
        self._reserved = reserved
        self._command = list(command)
        self._children = [_NumberedChild(number=number) for number in range(1, count + 1)]
        self._one_was_up = False
        self._stopping = False

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT, and returns 0; or 1 when a child does not start, which has logged the reason."""
        # The children read from this pipe: when its other end closes, this process has ended, however it ended.
        self._lifeline, held = os.pipe()
        self._metrics_dir = _private_dir()
        try:
            with self._signals() as woken:
                self._children[0].due_at = time.monotonic()
                while not self._stopping:
                    if not self._look():
                        return 1
                    self._wait(woken)
                logger.info("stopping %d processes", sum(1 for child in self._children if child.process))
                return 0
        finally:
            self._end_children()
            os.close(self._lifeline)
            os.close(held)
            shutil.rmtree(self._metrics_dir, ignore_errors=True)

    # --- one round

    def _look(self) -> bool:
        """Notes which children have come up or ended, and starts those that are due. Returns False to give up."""
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                self._ended(child, code)
                if not self._one_was_up:
                    return False  # only the first has been started: an error that all would have is logged once
                if child.early_ends >= _EARLY_ENDS_MAX:
                    logger.error("process %d ended %d times as it started", child.number, child.early_ends)
                    return False
            if child.not_yet_listening is not None and listens(child.not_yet_listening):
                child.not_yet_listening.close()  # from now on the child alone has it open
                child.not_yet_listening = None
                self._one_was_up = True
                assert child.process is not None
                took_seconds = time.monotonic() - child.started_at
                logger.info("process %d is up after %.1f s: pid %d", child.number, took_seconds, child.process.pid)
        for child in self._may_start():
            if child.process is None and time.monotonic() >= child.due_at:
                self._start(child)
        return True

    def _may_start(self) -> list[_NumberedChild]:
        """Returns the children that may be started: the first alone until one has been up."""
        return self._children if self._one_was_up else self._children[:1]

    def _start(self, child: _NumberedChild) -> None:
        own = beside(self._reserved, self._settings)
        options = ["--fd", str(own.fileno()), "--number", str(child.number), "--lifeline", str(self._lifeline)]
        process = subprocess.Popen(  # noqa: S603
            [*self._command, *options],
            env={**os.environ, _METRICS_DIR: self._metrics_dir},
            pass_fds=(own.fileno(), self._lifeline),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the children
        )
        child.started(process)
        child.not_yet_listening = own

    def _ended(self, child: _NumberedChild, return_code: int) -> None:
        assert child.process is not None
        logger.error("process %d (pid %d) %s", child.number, child.process.pid, how_it_ended(return_code))
        multiprocess.mark_process_dead(child.number, self._metrics_dir)  # type: ignore[no-untyped-call]
        child.ended(during_start=child.not_yet_listening is not None)
        if child.not_yet_listening is not None:
            child.not_yet_listening.close()
            child.not_yet_listening = None

    def _wait(self, woken: int) -> None:
        """Waits until a signal comes, a child is due to start, or a starting child's socket is to be looked at again."""
        now = time.monotonic()
        waits = [child.due_at - now for child in self._may_start() if child.process is None]
        waits += [_LOOK_SECONDS for child in self._children if child.not_yet_listening is not None]
        select.select([woken], [], [], max(0.0, min(waits)) if waits else None)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)

    # --- beginning and end

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """Handles signals; yields a file descriptor that becomes readable when SIGCHLD, SIGTERM or SIGINT has come."""

        def stop(*_: object) -> None:
            self._stopping = True

        readable, writable = os.pipe()
        os.set_blocking(readable, False)
        os.set_blocking(writable, False)
        before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGCHLD: lambda *_: None}
        replaced = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield readable
        finally:
            # SIGTERM and SIGINT stay handled: a second one must not end the supervisor before its children.
            signal.signal(signal.SIGCHLD, replaced[signal.SIGCHLD])
            signal.set_wakeup_fd(before)
            os.close(readable)
            os.close(writable)

    def _end_children(self) -> None:
        """Ends all children, which drain at the same time."""
        running = {child.process: child.number for child in self._children if child.process is not None}
        within_seconds = self._settings.drain_seconds + _KILL_SECONDS
        for process in end_all(list(running), within_seconds=within_seconds, first_signal=signal.SIGTERM):
            logger.error("process %d (pid %d) did not end, and is killed", running[process], process.pid)
        for child in self._children:
            if child.not_yet_listening is not None:
                child.not_yet_listening.close()
        self._reserved.close()


def _private_dir() -> str:
    """Makes a folder for the children's counters, in memory if possible, since the kernel would write them to a disk.

    Raises Unusable.
    """
    memory = "/dev/shm"  # noqa: S108
    try:
        return tempfile.mkdtemp(prefix="midstream-gateway-", dir=memory if os.access(memory, os.W_OK) else None)
    except OSError as error:
        raise Unusable(f"several gateway processes need a temporary folder for their metrics: {error}") from None


# --- in the child


class Membership:
    """Makes this process a supervisor's child. To be made before any metric is."""

    def __init__(self, number: int, lifeline: int) -> None:
        # Counters are kept under the child's number and not its pid: its successor counts on from there, and a child that
        # is started again and again does not leave a file behind each time.
        values.ValueClass = values.MultiProcessValue(lambda: str(number))  # type: ignore[no-untyped-call]
        self._orphaned = False
        threading.Thread(target=self._end_with, args=(lifeline,), daemon=True).start()

    def _end_with(self, lifeline: int) -> None:
        """Drains when the supervisor has been killed: nobody else would start this process again, or stop it."""
        with contextlib.suppress(OSError):  # a pipe that cannot be read shows no end either
            os.read(lifeline, 1)
        self._orphaned = True
        logger.error("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_KILL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        """Removes the folder that a killed supervisor left behind."""
        if self._orphaned:
            shutil.rmtree(os.environ[_METRICS_DIR], ignore_errors=True)

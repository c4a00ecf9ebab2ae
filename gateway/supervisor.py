"""Several gateway processes at one port: started together, started again when one dies, ended together.

This process serves nothing. It takes the port, gives each child a socket of its own there, and waits for signals. A
child's socket is closed with the child, so that the kernel gives new connections to those that are left; kept open, half
of them would wait for the next child. Children are not bound to cores: Redis, the workers and the network's interrupts
run beside them, and the kernel knows better than we which core is free.
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
from shared.errors import Unusable
from shared.settings import Settings

logger = logging.getLogger(__name__)

_EARLY_SECONDS = 5.0
"""A child that ends within so many seconds of its start is likely to do so again."""
_PAUSE_SECONDS = 0.1
"""Before it is started again; doubled for each such end in a row."""
_PAUSE_SECONDS_MAX = 5.0
_EARLY_ENDS_MAX = 10
"""So many in a row end the whole: about 20 s of pauses, and with a Redis that is away 45 s, longer than a failover."""
_LOOK_SECONDS = 0.02
"""How often a child that starts is asked whether it listens yet."""
_KILL_SECONDS = 5.0
"""What a child gets on top of the time to drain before it is killed."""
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def processes_wanted(settings: Settings) -> int:
    """How many processes this gateway is to have."""
    wanted = settings.gateway_processes or cores()
    if wanted > 1 and not CAN_SHARE:
        if settings.gateway_processes:
            logger.warning(
                "this system does not spread connections over processes: one gateway process and not %d", wanted
            )
        return 1
    return wanted


def cores(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that this process may use, at least 1: by its affinity, and by the CPU limit of its container.

    That limit is `cpu.max` (cgroup v2) of its group or of one above; half a core is no core. Where there is none, or no
    such files, the affinity alone counts.
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


@dataclass
class _Place:
    """One of the children, and its successors."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    not_yet_listening: socket.socket | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    early_ends: int = 0


class Supervisor:
    """Keeps `count` processes of `command` at the port of `reserved`, which is from `listening.reserve`."""

    def __init__(self, settings: Settings, count: int, reserved: socket.socket, command: Sequence[str]) -> None:
        if not is_reserved(reserved):
            raise Unusable(
                "an inherited socket that listens already cannot be shared: MIDSTREAM_GATEWAY_PROCESSES=1 serves on it"
            )
        self._settings = settings
        self._reserved = reserved
        self._command = list(command)
        self._places = [_Place(number) for number in range(1, count + 1)]
        self._one_was_up = False
        self._stopping = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT: 0. 1 when a child cannot be started; it has said why."""
        # The children hold the other end: when it closes, this process is gone, however it went.
        self._lifeline, held = os.pipe()
        self._metrics_dir = _private_dir()
        try:
            with self._signals() as woken:
                self._places[0].due_at = time.monotonic()
                while not self._stopping:
                    if not self._look():
                        return 1
                    self._wait(woken)
                logger.info("stopping %d processes", sum(1 for place in self._places if place.process))
                return 0
        finally:
            self._end_children()
            os.close(self._lifeline)
            os.close(held)
            shutil.rmtree(self._metrics_dir, ignore_errors=True)

    # --- one round

    def _look(self) -> bool:
        """See who has come up, who has died and whose time to start has come. False when there is no sense in going on."""
        for place in self._places:
            if place.process is not None and (code := place.process.poll()) is not None:
                self._ended(place, code)
                if not self._one_was_up:
                    return False  # the first goes ahead: what is wrong with all of them is said once
                if place.early_ends >= _EARLY_ENDS_MAX:
                    logger.error("process %d ended %d times as it started", place.number, place.early_ends)
                    return False
            if place.not_yet_listening is not None and listens(place.not_yet_listening):
                place.not_yet_listening.close()  # from here on it is the child's alone, and closes with it
                place.not_yet_listening = None
                self._one_was_up = True
                assert place.process is not None
                took_seconds = time.monotonic() - place.started_at
                logger.info("process %d is up after %.1f s: pid %d", place.number, took_seconds, place.process.pid)
        for place in self._may_start():
            if place.process is None and time.monotonic() >= place.due_at:
                self._start(place)
        return True

    def _may_start(self) -> list[_Place]:
        """The first goes ahead; the others wait until one has been up."""
        return self._places if self._one_was_up else self._places[:1]

    def _start(self, place: _Place) -> None:
        own = beside(self._reserved, self._settings)
        options = ["--fd", str(own.fileno()), "--number", str(place.number), "--lifeline", str(self._lifeline)]
        place.process = subprocess.Popen(  # noqa: S603
            [*self._command, *options],
            env={**os.environ, _METRICS_DIR: self._metrics_dir},
            pass_fds=(own.fileno(), self._lifeline),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is ours to hand on
        )
        place.not_yet_listening = own
        place.started_at = time.monotonic()

    def _ended(self, place: _Place, code: int) -> None:
        assert place.process is not None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        logger.error("process %d (pid %d) %s", place.number, place.process.pid, how)
        multiprocess.mark_process_dead(place.number, self._metrics_dir)  # type: ignore[no-untyped-call]
        if place.not_yet_listening is not None:
            place.not_yet_listening.close()
        early = place.not_yet_listening is not None or time.monotonic() - place.started_at < _EARLY_SECONDS
        place.process = place.not_yet_listening = None
        place.early_ends = place.early_ends + 1 if early else 0
        pause_seconds = min(_PAUSE_SECONDS * 2 ** (place.early_ends - 1), _PAUSE_SECONDS_MAX) if early else 0.0
        place.due_at = time.monotonic() + pause_seconds

    def _wait(self, woken: int) -> None:
        """Until a signal comes, a child's time has come, or one that starts is to be asked again."""
        now = time.monotonic()
        waits = [place.due_at - now for place in self._may_start() if place.process is None]
        waits += [_LOOK_SECONDS for place in self._places if place.not_yet_listening is not None]
        select.select([woken], [], [], max(0.0, min(waits)) if waits else None)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)

    # --- beginning and end

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """A file descriptor that can be read when a signal has come: SIGCHLD, or one that asks to stop."""

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
            # SIGTERM and SIGINT stay ours: a second one must not end us before the children have ended.
            signal.signal(signal.SIGCHLD, replaced[signal.SIGCHLD])
            signal.set_wakeup_fd(before)
            os.close(readable)
            os.close(writable)

    def _end_children(self) -> None:
        """All of them drain at the same time."""
        running = [(place.number, place.process) for place in self._places if place.process is not None]
        for _, process in running:
            process.terminate()
        deadline = time.monotonic() + self._settings.drain_seconds + _KILL_SECONDS
        for number, process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("process %d (pid %d) did not end, and is killed", number, process.pid)
                process.kill()
                process.wait()
        for place in self._places:
            if place.not_yet_listening is not None:
                place.not_yet_listening.close()
        self._reserved.close()


def _private_dir() -> str:
    """A folder for the children's counters, in memory where that is possible: the kernel would write them to a disk."""
    memory = "/dev/shm"  # noqa: S108
    try:
        return tempfile.mkdtemp(prefix="midstream-gateway-", dir=memory if os.access(memory, os.W_OK) else None)
    except OSError as error:
        raise Unusable(f"several gateway processes need a temporary folder for their metrics: {error}") from None


# --- in the child


class Membership:
    """What makes a process one of several: to be told before any metric is made."""

    def __init__(self, number: int, lifeline: int) -> None:
        # Its counters are kept under its number and not its pid: its successor goes on counting, and a process that is
        # started again and again does not leave a file behind each time.
        values.ValueClass = values.MultiProcessValue(lambda: str(number))  # type: ignore[no-untyped-call]
        self._orphaned = False
        threading.Thread(target=self._end_with, args=(lifeline,), daemon=True).start()

    def _end_with(self, lifeline: int) -> None:
        """Drain when the supervisor has been killed: nobody would start us again or could tell us to stop."""
        with contextlib.suppress(OSError):  # it cannot be listened to any more: then nobody would notice either
            os.read(lifeline, 1)
        self._orphaned = True
        logger.error("the supervisor is gone")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_KILL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        """Clean up what a supervisor that was killed left behind."""
        if self._orphaned:
            shutil.rmtree(os.environ[_METRICS_DIR], ignore_errors=True)

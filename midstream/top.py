"""`midstream top`: shows what runs now, from the gateway's stream of one snapshot a second."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from types import FrameType
from typing import Any

import orjson

from midstream.client import Client, Lost, StreamError
from midstream.gateway_answers import authorization
from midstream.screen import Screen, frame

_PAUSE_SECONDS = 1.0
_GIVE_UP_SECONDS = 2.0
"""Then the reason is shown, and it begins anew: whoever watches does not want to wait for a pause that has grown."""
_SILENT_SECONDS_MAX = 10.0
"""Ten snapshots have failed to come."""
_HISTORY_MAX = 500
"""Samples of the token rate chart: one for each column of a very wide terminal."""

Snapshot = dict[str, Any]


def top(*, server: str, once: bool, as_json: bool) -> int:
    """Shows snapshots until Ctrl-C; with `once`, only one. Raises StreamError."""
    server = server.rstrip("/")
    if once:
        snapshot = _snapshot(server)
        if as_json:
            print(orjson.dumps(snapshot, option=orjson.OPT_INDENT_2).decode())
        else:
            size = shutil.get_terminal_size()
            print("\n".join(frame(snapshot, server, [], size.columns, 10_000, colours=_colours())))
        return 0
    if as_json:
        for update in _snapshots(server):
            if isinstance(update, dict):
                sys.stdout.buffer.write(orjson.dumps(update) + b"\n")
                sys.stdout.buffer.flush()
        return 0
    if not sys.stdout.isatty():
        raise StreamError(
            "standard output is no terminal: use --once for one snapshot, --json for one line per snapshot"
        )
    _watch(server)
    return 0


def _snapshot(server: str) -> Snapshot:
    """Returns what runs now. Raises StreamError."""
    with (
        Client(server, headers=authorization(), give_up_seconds=0.0) as client,
        closing(_snapshots_of(client, server)) as updates,
    ):
        for update in updates:
            if isinstance(update, dict):
                return update
    raise StreamError(f"{server}/v1/overview/events sent no snapshot: is it a Midstream gateway?")


def _snapshots(server: str) -> Iterator[Snapshot | str]:
    """Yields each snapshot; after a lost connection its reason, then tries again. Raises StreamError if the first snapshot fails."""
    yield _snapshot(server)  # a wrong address fails at once
    with Client(
        server, headers=authorization(), stall_seconds=_SILENT_SECONDS_MAX, give_up_seconds=_GIVE_UP_SECONDS
    ) as client:
        while True:
            try:
                yield from _snapshots_of(client, server)
            except StreamError as error:
                yield str(error)
            time.sleep(_PAUSE_SECONDS)


def _snapshots_of(client: Client, server: str) -> Generator[Snapshot | str, None, None]:
    """Yields snapshots, and reasons why there are none at the moment. Raises StreamError."""
    try:
        for event in client.follow(f"{server}/v1/overview/events"):
            if isinstance(event, Lost):
                yield str(event.error)
            elif isinstance(event.data, dict) and "streams" in event.data:
                yield event.data
    except StreamError as error:
        if error.status == 404:
            raise StreamError(
                f"{server} has no overview: this is no gateway, or its console is off (MIDSTREAM_CONSOLE=on)",
                status=404,
            ) from None
        if error.status == 0 and error.retryable:
            raise StreamError(f"{server} cannot be reached: {error}") from None
        raise


def _watch(server: str) -> None:
    """Draws until SIGINT or SIGTERM, then restores the terminal."""
    rates: deque[float] = deque(maxlen=_HISTORY_MAX)
    newest: Snapshot = {}
    trouble = ""

    def draw(*_: object) -> None:
        if newest:
            size = os.get_terminal_size(sys.stdout.fileno())  # not COLUMNS: it may describe another terminal
            lines = frame(
                newest, server, list(rates), size.columns or 80, size.lines or 24, colours=_colours(), trouble=trouble
            )
            screen.show(lines)

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with Screen() as screen, _signal_handlers({signal.SIGWINCH: draw, signal.SIGTERM: leave}), _echo_off():
        for update in _snapshots(server):
            if isinstance(update, str):
                trouble = update
            else:
                newest, trouble = update, ""
                rates.append(update["per_second"].get("tokens_generated", 0.0))
            draw()


@contextlib.contextmanager
def _signal_handlers(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _echo_off() -> Iterator[None]:
    """Turns the terminal's echo off, so that pressed keys do not appear in the drawing."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = termios.tcgetattr(sys.stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, before)


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

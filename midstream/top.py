"""`midstream top`: what runs now, in the terminal. One snapshot a second, from the gateway's own event stream."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

import httpx2
import orjson

from midstream.client import StreamError, connect, explain
from midstream.screen import Screen, frame

_PAUSE_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_HISTORY_MAX = 500
"""Samples of the small chart: as many as the widest terminal has columns."""

Snapshot = dict[str, Any]


def top(*, server: str, once: bool, as_json: bool) -> int:
    """Until Ctrl-C; with `once`, one snapshot. Raises StreamError."""
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
        for told in _snapshots(server):
            if isinstance(told, dict):
                sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
                sys.stdout.buffer.flush()
        return 0
    if not sys.stdout.isatty():
        raise StreamError("this is no terminal to draw in: --once shows one snapshot, --json all of them as lines")
    _watch(server)
    return 0


def _snapshot(server: str) -> Snapshot:
    try:
        with httpx2.Client(timeout=_CONNECT_SECONDS) as client, client.stream("GET", f"{server}/v1/overview") as answer:
            if answer.status_code != 200:
                raise StreamError(_refusal(answer))
            snapshot: Snapshot = orjson.loads(answer.read())
            return snapshot
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise StreamError(f"{server} cannot be reached: {error or type(error).__name__}") from None
    except orjson.JSONDecodeError:
        raise StreamError(f"{server}/v1/overview answered with something else: is it a Midstream gateway?") from None


def _snapshots(server: str) -> Iterator[Snapshot | str]:
    """Every snapshot; or why there is none at the moment, before each new try. Raises StreamError at the first."""
    yield _snapshot(server)  # what is wrong with the address is said at once
    while True:
        why = "the gateway ended the response"
        try:
            with connect(f"{server}/v1/overview/events") as messages:
                for message in messages:
                    snapshot: Snapshot = orjson.loads(message.data)
                    yield snapshot
        except (httpx2.HTTPError, StreamError) as error:
            why = str(error) or type(error).__name__
        yield why
        time.sleep(_PAUSE_SECONDS)


def _watch(server: str) -> None:
    """Draw until SIGINT or SIGTERM; the terminal is as it was afterwards."""
    rates: deque[float] = deque(maxlen=_HISTORY_MAX)
    newest: Snapshot = {}
    trouble = ""

    def draw(*_: object) -> None:
        if newest:
            size = os.get_terminal_size(sys.stdout.fileno())  # not what COLUMNS says: that may be of another terminal
            lines = frame(
                newest, server, list(rates), size.columns or 80, size.lines or 24, colours=_colours(), trouble=trouble
            )
            screen.show(lines)

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with Screen() as screen, _handling({signal.SIGWINCH: draw, signal.SIGTERM: leave}), _quiet_keyboard():
        for told in _snapshots(server):
            if isinstance(told, str):
                trouble = told
            else:
                newest, trouble = told, ""
                rates.append(told["per_second"].get("tokens_generated", 0.0))
            draw()


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_keyboard() -> Iterator[None]:
    """Keys that are pressed are not shown in the middle of the picture."""
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


def _refusal(answer: Any) -> str:
    if answer.status_code == 404:
        return f"{answer.request.url} is not there: no gateway, or one without a console (MIDSTREAM_CONSOLE=on)"
    return explain(answer)

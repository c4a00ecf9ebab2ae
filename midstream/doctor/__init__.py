"""`midstream doctor URL`: tests whether streams reach readers undelayed; if not, names the hop at fault and what to change.

examine ──► observe (one request, when its bytes came) ──► checks (what that means) ──► report (which hop; kinds: what to change)

`midstream doctor --redis` is in `redis`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

import httpx2
import orjson

from midstream.doctor.examine import IDLE_SECONDS_MAX, Address, Examined, Options, examine
from midstream.doctor.observe import Client
from midstream.doctor.report import as_json, as_text, report_of
from midstream.gateway_answers import authorization
from shared.errors import MidstreamError, Unusable
from shared.grants import Role

ADDRESSES_MAX = 8
"""Addresses tested at the same time; a longer path takes two runs."""


class BadUse(MidstreamError):
    """An option has an invalid value."""


def doctor_of_redis(url: str, *, role: Role | None, json: bool) -> int:
    """Runs `midstream doctor --redis [URL]`. `url`: empty for MIDSTREAM_REDIS_URL. `role`: whose permissions are tried; None: both.

    Returns 0 if Midstream can use it, 1 if there are faults, 2 if Redis cannot be asked or a setting is invalid.
    """
    from midstream.doctor.redis import examined_redis

    try:
        with _Progress(quiet=json) as progress:
            report = asyncio.run(examined_redis(url, role=role, progress=progress.show))
    except Unusable as error:
        print(f"midstream doctor: {error}", file=sys.stderr)
        return 2
    print(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2).decode() if json else report.as_text())
    return report.exit_code


def doctor(
    url: str,
    *,
    via: Sequence[str],
    headers: Sequence[str],
    idle_seconds: float | None,
    age_seconds: float,
    timeout_seconds: float,
    insecure: bool,
    json: bool,
) -> int:
    """Returns 0 if streams arrive undelayed, 1 if there are faults, 2 if an address cannot be reached or an option is invalid."""
    try:
        addresses = [*(_address(text) for text in via), _address(url)]
        if len(addresses) > ADDRESSES_MAX:
            raise BadUse(f"at most {ADDRESSES_MAX} addresses can be tested at once, not {len(addresses)}")
        _check_range("--idle", idle_seconds or 0.0, 0, IDLE_SECONDS_MAX)
        _check_range("--age", age_seconds, 0, IDLE_SECONDS_MAX)
        _check_range("--timeout", timeout_seconds, 0.1, 300)
        client = Client(timeout_seconds, [*authorization().items(), *map(_header, headers)], insecure)
    except BadUse as error:
        print(f"midstream doctor: {error}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with _Progress(quiet=json) as progress:
        examined = asyncio.run(_examine_all(addresses, client, Options(idle_seconds, age_seconds), progress))
    report = report_of(examined)
    took_seconds = time.monotonic() - began
    if json:
        print(orjson.dumps(as_json(report, took_seconds), option=orjson.OPT_INDENT_2).decode())
    else:
        print(as_text(report, took_seconds))
    return report.exit_code


async def _examine_all(
    addresses: Sequence[Address], client: Client, options: Options, progress: _Progress
) -> list[Examined]:
    last = addresses[-1]
    ticking = asyncio.create_task(progress.tick())
    try:
        return await asyncio.gather(
            *(
                examine(address, client, options, outermost=address is last, progress=progress.show)
                for address in addresses
            )
        )
    finally:
        ticking.cancel()


class _Progress:
    """One line on standard error that says what the doctor waits for; shown on a terminal only."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._began = time.monotonic()
        self._activity = "reaching the addresses"

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, activity: str) -> None:
        self._activity = activity
        if self._shown:
            print(
                f"\r\x1b[K{time.monotonic() - self._began:3.0f} s  {activity[:70]}", end="", file=sys.stderr, flush=True
            )

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.show(self._activity)


def _address(text: str) -> Address:
    name, equals, url = text.partition("=")
    if not equals or "/" in name:
        name, url = "", text
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise BadUse(f"{text!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadUse(f"{text!r} must begin with http:// or https://, or be NAME=http://...")
    if parsed.query or parsed.fragment:
        raise BadUse(f"{text!r}: give the address of a gateway or proxy, without ? and #")
    return Address(url, name.strip()[:40])


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or not text.isprintable():
        raise BadUse(f"--header {text!r}: must be NAME: VALUE, as in 'Host: chat.example.com'")
    return name.strip(), value.strip()


def _check_range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise BadUse(f"{option} must be from {least:g} to {most:g} seconds, not {value:g}")

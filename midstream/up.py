"""`midstream up`: runs a gateway, workers and a Valkey on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from midstream.processes import LocalMidstream, settings_for
from shared.api_keys import SCOPES, new_key
from shared.provider_address import host_of
from shared.provider_kinds import OPENAI, SIMULATED, provider_kinds
from shared.settings import Settings

logger = logging.getLogger("midstream")

_LOOK_SECONDS = 0.2
_KEY_NAME = "local"
_MODELS_SHOWN = 8
_WORDS_CHARACTERS_MAX = 200
"""Of the provider's own message."""


class _Stop(BaseException):
    """Raised by the handlers of SIGINT and SIGTERM."""


def up(
    *,
    host: str | None,
    port: int | None,
    redis_url: str | None,
    provider: str | None,
    base_url: str | None,
    model: str | None,
    workers: int,
    gateways: int | None,
    data_dir: Path | None,
    log_format: str | None = None,
    metrics_port: int | None = None,
    reload: bool = False,
    auth: bool = False,
) -> int:
    """Runs until Ctrl-C or SIGTERM. With `auth` clients need an API key, and one is printed. Raises Unusable."""
    key = new_key() if auth else None
    options = {
        "MIDSTREAM_HOST": host,
        "MIDSTREAM_PORT": None if port is None else str(port),
        "MIDSTREAM_REDIS_URL": redis_url,
        "MIDSTREAM_PROVIDER": provider,
        "OPENAI_BASE_URL": base_url,
        "MIDSTREAM_DEFAULT_MODEL": model,
        "MIDSTREAM_LOG_FORMAT": log_format,
        "MIDSTREAM_METRICS_PORT": None if metrics_port is None else str(metrics_port),
        "MIDSTREAM_GATEWAY_PROCESSES": None if gateways is None else str(gateways),
        "MIDSTREAM_AUTH": None if key is None else "required",
        "MIDSTREAM_API_KEYS": None if key is None else _with_key(os.environ.get("MIDSTREAM_API_KEYS", ""), key),
    }
    if data_dir is not None and redis_url is None and not os.environ.get("MIDSTREAM_ARCHIVE_URL"):
        options["MIDSTREAM_ARCHIVE_URL"] = _archive_in(data_dir)
    settings, environment = settings_for(options, os.environ)

    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()  # as well: what is raised inside a finalizer or a callback is ignored by Python
        for stopping in (signal.SIGINT, signal.SIGTERM):
            signal.signal(stopping, lambda *_: midstream.stop(at_once=True))  # a second signal hurries
        raise _Stop

    midstream = LocalMidstream(
        settings,
        redis_url=environment.get("MIDSTREAM_REDIS_URL") or None,
        data_dir=data_dir,
        workers=workers,
        environment=environment,
        reload=reload,
    )
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, stop)
    try:
        with midstream:
            print(f"midstream is up: {midstream.url}", flush=True)
            if key is not None:
                print(_how_to_use(key, midstream.url), flush=True)
            _say_what_there_is(midstream.url, settings)
            while not stopped.is_set():
                time.sleep(_LOOK_SECONDS)
                midstream.look_after_children()
    except _Stop:
        pass
    logger.info("midstream is down")
    return 0


def _archive_in(data_dir: Path) -> str | None:
    """Returns the URL of the archive beside the embedded Valkey's data; None where its libraries are not installed."""
    if importlib.util.find_spec("sqlalchemy") is None or importlib.util.find_spec("aiosqlite") is None:
        logger.warning("ended answers are not archived: pip install 'midstream[archive]'")
        return None
    return f"sqlite:///{data_dir.resolve() / 'archive.sqlite'}"


def _with_key(others: str, key: str) -> str:
    """Returns the API keys of the environment, with this one, which may do everything."""
    return f"{others};{_KEY_NAME} {','.join(sorted(SCOPES))} {key}"


def _how_to_use(key: str, url: str) -> str:
    ask = '{"messages": [{"role": "user", "content": "Tell me a story."}]}'
    return (
        f"API key, valid until this stops: {key}\n"
        f"ask: curl -N {url}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' "
        f"-d '{ask[:-1]}, \"stream\": true}}'"
    )


def _say_what_there_is(url: str, settings: Settings) -> None:
    """Prints the console's address, if there is one, and what the provider has."""
    from gateway.access.mode import is_authentication_on
    from gateway.console.files import is_wanted  # a web framework: now that the children run, nobody waits for it

    if is_wanted(settings, guarded=is_authentication_on(settings, settings.host)):
        print(f"open the console: {url}/", flush=True)
    print(asyncio.run(_about_the_provider(settings)), flush=True)


async def _about_the_provider(settings: Settings) -> str:
    """Asks the provider for its models. Returns a line that names them, or says why they are not known."""
    kinds = provider_kinds(settings)
    if OPENAI not in kinds.values():
        own = [kind for kind in kinds.values() if kind != SIMULATED]
        if own:
            return f"answers come from {', '.join(own)}"
        return "answers are simulated; for a real model: --base-url URL, or OPENAI_API_KEY"
    from gateway.http.problems import Problem
    from gateway.provider_models import ProviderModels

    where, models = f"the provider at {host_of(settings.openai_base_url)}", ProviderModels(settings)
    try:
        listed = await models.listed()
        names = [str(model["id"]) for model in listed["data"] if isinstance(model, dict) and "id" in model]
        default = await models.default()
    except Problem as problem:
        words = str((problem.error or {}).get("message") or "")[:_WORDS_CHARACTERS_MAX]
        return f"{where} is not ready: {problem.detail}{f' ({words})' if words and words != problem.detail else ''}"
    shown = ", ".join(names[:_MODELS_SHOWN]) + (", …" if len(names) > _MODELS_SHOWN else "")
    missing = "" if default in names else ", which is not among them"
    return f"{where} has {len(names)} model{'' if len(names) == 1 else 's'}: {shown}. A request that names none gets {default}{missing}"

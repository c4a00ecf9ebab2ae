"""Which providers a worker has, by name, from the settings: `openai`, `simulated`, or `package.module:object`."""

from __future__ import annotations

import re

from shared.errors import Unusable
from shared.provider_address import check_base_url
from shared.settings import Settings

OPENAI, SIMULATED = "openai", "simulated"
_OBJECT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""A module and an object in it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PROVIDERS_MAX = 32
"""Each is loaded at the start of every worker."""


def provider_kinds(settings: Settings) -> dict[str, str]:
    """Returns the kind of each provider by its name, the one for requests that name none first. Raises Unusable."""
    if settings.providers:
        if settings.provider:
            raise Unusable("MIDSTREAM_PROVIDER and MIDSTREAM_PROVIDERS are both set: one of them must not be")
        return _named(settings.providers)
    kind = settings.provider or (OPENAI if _has_openai(settings) else SIMULATED)
    if not is_kind(kind):
        raise Unusable(f"MIDSTREAM_PROVIDER={kind!r} must be openai, simulated or package.module:object")
    return {kind: kind}


def check_for_worker(settings: Settings) -> None:
    """Checks what a worker's providers need; a gateway needs none of it. Raises Unusable."""
    if settings.provider_on_cancel not in ("close", "drain"):
        raise Unusable(f"MIDSTREAM_PROVIDER_ON_CANCEL={settings.provider_on_cancel!r} must be close or drain")
    if OPENAI in provider_kinds(settings).values() and not _has_openai(settings):
        raise Unusable("the openai provider needs OPENAI_API_KEY, or OPENAI_BASE_URL for a server that needs no key")
    if OPENAI in provider_kinds(settings).values():
        check_base_url(settings.openai_base_url)


def _has_openai(settings: Settings) -> bool:
    return bool(settings.openai_api_key or settings.openai_base_url)


def is_kind(kind: str) -> bool:
    return kind in (OPENAI, SIMULATED) or is_object(kind)


def is_object(kind: str) -> bool:
    """Returns whether a provider is an object of the user's own, which a worker has to import."""
    return _OBJECT.fullmatch(kind) is not None


def _named(listed: str) -> dict[str, str]:
    """Returns the kinds by name that MIDSTREAM_PROVIDERS lists. Raises Unusable."""
    kinds: dict[str, str] = {}
    for part in listed.split(","):
        name, equals, kind = (text.strip() for text in part.partition("="))
        if not equals or not _NAME.fullmatch(name) or not is_kind(kind):
            raise Unusable(
                f"MIDSTREAM_PROVIDERS: {part.strip()!r} must be NAME=PROVIDER, where the provider is openai, simulated or "
                "package.module:object, as in chat=openai,agent=app:answer"
            )
        if name in kinds:
            raise Unusable(f"MIDSTREAM_PROVIDERS names {name!r} twice")
        kinds[name] = kind
    if len(kinds) > _PROVIDERS_MAX:
        raise Unusable(f"MIDSTREAM_PROVIDERS names {len(kinds)} providers; {_PROVIDERS_MAX} are the most")
    return kinds

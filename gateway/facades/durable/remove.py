"""`DELETE`: ends a stream if it runs, and forgets it (section 5.3). Its path can be used again at once, by another stream."""

from __future__ import annotations

from typing import Any

from gateway.facades.durable import answers
from gateway.facades.durable.found import Found, path_of
from gateway.facades.durable.services import DurableServices
from gateway.http.connection import Receive, Scope


class Remove:
    """Deletes streams."""

    def __init__(self, services: DurableServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        services, path = self._services, path_of(scope)

        async def use(found: Found) -> bool | None:
            if await services.reading.tail(found) is None:
                return None
            await services.streams.delete(found.stream_id)
            written = found.written
            if written is not None:
                if found.name:
                    point = services.names.point
                    await services.streams.answered(
                        point, written.owner, found.name, before=found.stream_id, after="", life_ms=0
                    )
                await services.quotas.forget(written)
            return True

        await services.finder.until_found(path, use)
        services.finder.forget(path)
        await answers.empty(204, {})(scope, receive, send)

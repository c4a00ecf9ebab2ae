"""The gateway refuses to start with a uvicorn whose inside differs from what it needs, and names the difference."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.http.uvicorn_inside import check_uvicorn
from shared.errors import Unusable


async def test_the_installed_uvicorn_passes_the_check() -> None:
    check_uvicorn()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HttpToolsProtocol, "_unset_keepalive_if_required"),
        (HttpToolsProtocol, "on_response_complete"),
        (WebSocketsSansIOProtocol, "send_receive_event_to_app"),
    ],
)
async def test_a_missing_method_is_found(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(Unusable) as caught:
        check_uvicorn()
    assert f"uvicorn {uvicorn.__version__} is not made as the gateway needs it" in str(caught.value)
    assert f"{owner.__name__}.{name}" in str(caught.value)
    assert "requirements.lock" in str(caught.value)


async def test_an_additional_parameter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RequestResponseCycle.__init__

    def longer(self: Any, *arguments: Any, more: Any = None, **named: Any) -> None:
        before(self, *arguments, **named)

    monkeypatch.setattr(RequestResponseCycle, "__init__", longer)
    with pytest.raises(Unusable, match="the parameters of RequestResponseCycle"):
        check_uvicorn()


async def test_a_wrapped_send_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrapping(self: RequestResponseCycle, app: Any) -> None:
        async def send(message: Any) -> None:
            await self.send(message)

        await app(self.scope, self.receive, send)

    monkeypatch.setattr(RequestResponseCycle, "run_asgi", wrapping)
    with pytest.raises(Unusable, match="the application's `send`"):
        check_uvicorn()


async def test_a_connection_that_cannot_be_constructed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(self: Any, config: Any) -> None:
        raise TypeError("one argument is enough now")

    monkeypatch.setattr(HttpToolsProtocol, "__init__", refusing)
    with pytest.raises(Unusable, match="TypeError"):
        check_uvicorn()


async def test_the_check_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    check_uvicorn()
    assert asyncio.all_tasks() == before

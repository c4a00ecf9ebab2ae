"""What `gateway.http` relies on of uvicorn that uvicorn does not promise, and the check that it is still so.

A reader's response is taken out of uvicorn's hands (docs/decisions/0008-a-reader-s-response-is-taken-out-of-uvicorn.md). That
needs attributes and methods which may change with any version. pyproject.toml has an upper bound on the version, but an
environment can be put together by hand: so each gateway process checks at its start, which takes 2 ms.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from typing import Any

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from shared.errors import Unusable

_HTTP_METHODS = (
    "connection_made connection_lost data_received eof_received pause_writing resume_writing "
    "on_response_complete timeout_keep_alive_handler _unset_keepalive_if_required _start_asgi_task"
)
_HTTP_ATTRIBUTES = (
    "access_log access_logger app app_state asgi_version client config connections cycle flow logger loop parser pipeline "
    "root_path scheme server server_state timeout_keep_alive timeout_keep_alive_task transport ws_protocol_class"
)
_CYCLE_PARAMETERS = (
    "scope transport flow logger access_logger access_log default_headers message_event expect_100_continue keep_alive "
    "on_response"
)
_CYCLE_ATTRIBUTES = (
    "body default_headers disconnected keep_alive message_event more_body on_response response_complete response_started "
    "scope waiting_for_100_continue"
)
_FLOW_ATTRIBUTES = "write_paused pause_reading resume_reading pause_writing resume_writing drain"
_WEBSOCKET_METHODS = (
    "connection_made connection_lost data_received pause_writing resume_writing handle_connect handle_cont handle_ping "
    "handle_pong send_receive_event_to_app receive send stop_keepalive"
)
_WEBSOCKET_ATTRIBUTES = (
    "close_sent close_timeout close_timer conn curr_msg_data_type disconnected frames handshake_complete "
    "handshake_initiated initial_response logger loop queue read_paused transport"
)
_SERVER_METHODS = "handle_exit main_loop on_tick serve"
_SERVER_ATTRIBUTES = "_captured_signals"


def check_uvicorn() -> None:
    """Raises Unusable where uvicorn's inside is not the one that this package was written for. Needs a running loop."""
    try:
        missing = sorted(_missing())
    except Exception as error:
        missing = [f"{type(error).__name__}: {error}"]
    if missing:
        raise Unusable(
            f"uvicorn {uvicorn.__version__} is not made as the gateway needs it ({', '.join(missing[:5])}): "
            "install the version that requirements.lock names, or one that pyproject.toml allows"
        )


def _missing() -> Iterable[str]:
    """The names of what is not there."""
    config = uvicorn.Config(
        _no_app, http=HttpToolsProtocol, ws=WebSocketsSansIOProtocol, lifespan="off", log_config=None
    )
    config.load()
    server_state = ServerState()
    http = HttpToolsProtocol(config, server_state, {}, asyncio.get_running_loop())
    websocket = WebSocketsSansIOProtocol(config, server_state, {}, asyncio.get_running_loop())
    cycle = _cycle()
    for owner, names in (
        (http, f"{_HTTP_METHODS} {_HTTP_ATTRIBUTES}"),
        (websocket, f"{_WEBSOCKET_METHODS} {_WEBSOCKET_ATTRIBUTES}"),
        (cycle, _CYCLE_ATTRIBUTES),
        (cycle.flow, _FLOW_ATTRIBUTES),
        (server_state, "connections default_headers tasks total_requests"),
        (uvicorn.Server(config), f"{_SERVER_METHODS} {_SERVER_ATTRIBUTES}"),
    ):
        yield from (f"{type(owner).__name__}.{name}" for name in names.split() if not hasattr(owner, name))
    if [*inspect.signature(RequestResponseCycle).parameters] != _CYCLE_PARAMETERS.split():
        yield "the parameters of RequestResponseCycle"
    if not STATUS_LINE[200].startswith(b"HTTP/1.1 200 "):
        yield "STATUS_LINE"
    if _sender_of(cycle) is not cycle:
        yield "RequestResponseCycle.send as the application's `send`"
    if getattr(websocket.send, "__self__", None) is not websocket:
        yield "WebSocketsSansIOProtocol.send"


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("this application is never called")


def _cycle() -> RequestResponseCycle:
    logger = uvicorn.config.logger
    flow = FlowControl(asyncio.Transport())
    values: dict[str, Any] = {
        **dict.fromkeys(_CYCLE_PARAMETERS.split()),
        "flow": flow,
        "logger": logger,
        "access_logger": logger,
        "default_headers": [],
        "on_response": lambda: None,
    }
    return RequestResponseCycle(**values)


def _sender_of(cycle: RequestResponseCycle) -> Any:
    """The object whose method an application is given as `send`."""
    senders: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        senders.append(getattr(send, "__self__", None))
        cycle.disconnected = True  # so that no answer is expected

    running = cycle.run_asgi(app)
    try:
        running.send(None)  # it waits for nothing
    except StopIteration:
        pass
    finally:
        running.close()
    return senders[0] if senders else None

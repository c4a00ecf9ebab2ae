"""Describes the operations that the AI SDK's `useChat` needs for the OpenAPI document.

The models are documentation; requests are checked by `gateway.facades.ai_sdk.messages`, whose messages say more than a model's would.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.api.models import MidstreamOptions
from gateway.http.accept import SSE
from gateway.http.operations import (
    IDEMPOTENCY_KEY,
    JSON,
    Answer,
    Described,
    EventKind,
    Operation,
    in_path,
    query,
)

ChatId = Annotated[str, Field(min_length=1, max_length=255)]


class UiMessage(Described):
    """A message as `useChat` has it."""

    role: Literal["system", "user", "assistant"]
    parts: list[dict[str, Any]]
    id: str | None = None


class ChatQuestion(Described):
    """The request of `DefaultChatTransport`. Fields that are not named here are parameters for the provider."""

    id: ChatId
    """The chat's id."""
    messages: Annotated[list[UiMessage], Field(min_length=1)]
    trigger: str | None = None
    messageId: str | None = None  # noqa: N815  # the transport's own name
    model: str | None = None
    midstream: MidstreamOptions = MidstreamOptions()


class ChatStop(Described):
    """Which stream is to be stopped, if it is not the active one."""

    activeStreamId: str | None = None  # noqa: N815  # the SDK's own name


class StoppedChat(Described):
    """The state of the stream after the request."""

    stopped: bool
    """False if the stream had ended before, or if there is none."""
    stream_id: str | None
    status: str | None


class StreamAddress(Described):
    """Where a stream can be read."""

    streamUrl: str  # noqa: N815


class UiPart(Described):
    """A part of the UI message stream; the other fields depend on `type`, as the AI SDK has them."""

    type: str


class StartPart(UiPart):
    """The message begins."""

    messageId: str  # noqa: N815
    messageMetadata: dict[str, Any]  # noqa: N815


class TextPart(UiPart):
    """A text or reasoning begins, goes on or ends."""

    id: str
    delta: str | None = None


class ToolPart(UiPart):
    """A tool call begins, goes on or is complete."""

    toolCallId: str  # noqa: N815
    toolName: str | None = None  # noqa: N815
    inputTextDelta: str | None = None  # noqa: N815
    input: Any = None
    errorText: str | None = None  # noqa: N815


class FinishPart(UiPart):
    """The message ends."""

    finishReason: Literal["stop", "length", "content-filter", "tool-calls", "error", "other"]  # noqa: N815
    messageMetadata: dict[str, Any] | None = None  # noqa: N815


class ErrorPart(UiPart):
    """The stream has failed."""

    errorText: str  # noqa: N815


class AbortPart(UiPart):
    """The stream was cancelled."""

    reason: str


class GapPart(UiPart):
    """Events are gone."""

    data: dict[str, Any]
    transient: Literal[True]


class OwnPart(UiPart):
    """An event of a generator of the operator's own."""

    data: Any = None


def _part(data: type[UiPart], description: str) -> EventKind:
    return EventKind("", data, description, has_id=False)


_PARTS = (
    _part(StartPart, "`start`: the message begins; `messageMetadata.streamId` is the stream."),
    _part(UiPart, "`start-step`, `finish-step`, and `reset-step`: another attempt begins; drop this step's parts."),
    _part(TextPart, "`text-start`, `text-delta`, `text-end`; also `reasoning-start` and so on."),
    _part(ToolPart, "`tool-input-start`, `tool-input-delta`, `tool-input-available`, `tool-input-error`."),
    _part(FinishPart, "`finish`: the message is complete."),
    _part(ErrorPart, "`error`: the stream has failed; a `finish` follows."),
    _part(AbortPart, "`abort`, instead of `finish`: the stream was cancelled."),
    _part(OwnPart, "`data-<name>`: an event of a generator of the operator's own."),
    _part(GapPart, "`data-gap`: events between these ids are gone."),
    EventKind("", "[DONE]", "No more parts will come.", has_id=False),
)
_HEADERS = {"X-Stream-Id": "The stream's id.", "x-vercel-ai-ui-message-stream": "`v1`."}
_ADDRESS = "With `Accept: application/json`: where the stream can be read by the Durable Streams protocol."
_CHAT_ID = in_path("chat_id", "The chat's id.", type="string", minLength=1, maxLength=255)

ASK = Operation(
    "AI SDK",
    "ask",
    "A question of `useChat`: creates a stream, which becomes the chat's active one, and follows it.",
    (
        Answer(200, "The UI message stream.", {SSE: None}, _HEADERS),
        Answer(201, _ADDRESS, {JSON: StreamAddress}, {"Location": "The same address."}),
    ),
    parameters=(IDEMPOTENCY_KEY,),
    body=ChatQuestion,
    errors=(406, 413, 415, 422),
    events=_PARTS,
)
RESUME = Operation(
    "AI SDK",
    "resume_chat",
    "A chat's active stream from its first part, then live.",
    (
        Answer(
            200,
            f"The UI message stream. {_ADDRESS} `Location` has the same address.",
            {SSE: None, JSON: StreamAddress},
            _HEADERS,
        ),
        Answer(204, "The chat has no active stream."),
    ),
    parameters=(
        _CHAT_ID,
        query("ended", "`replay`: also replay a stream that has ended.", type="string", enum=["replay"]),
    ),
    errors=(404, 406, 410),
    events=_PARTS,
)
STOP = Operation(
    "AI SDK",
    "stop_chat",
    "Cancel a chat's active stream, or the one that the body names. May be repeated.",
    (Answer(200, "The state of the stream after the request.", {JSON: StoppedChat}),),
    parameters=(_CHAT_ID,),
    body=ChatStop,
    body_is_required=False,
    errors=(413, 415),
)

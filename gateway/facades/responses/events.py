"""The events of the Responses API, made from a log of chat deltas: one state machine for following and for fetching.

    created ─► [queued] ─► in_progress ─► items, one after the other ─► completed │ incomplete │ failed

    message     item.added ─► part.added ─► output_text.delta … ─► output_text.done ─► part.done ─► item.done
                              (a refusal is a part, too)
    reasoning   as message, with reasoning_text
    call        item.added ─► function_call_arguments.delta … ─► arguments.done ─► item.done

At most one message or reasoning item is open; an item of another kind closes it. Calls stay open to the end, because
Chat Completions may interleave the pieces of several. Items that are open when an answer is cut off end as `incomplete`.

An own event becomes a `keepalive`, OpenAI's own event that says nothing, with the extra field `midstream`. The SDK for Node
raises at an event of a type that it does not know.

Everything follows from the log: numbers count from 0, an item's id consists of the stream's id and the item's index. So
every gateway writes the same bytes at any time.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import Any

import orjson

from gateway.facades.responses.response_object import error_of, response_object, usage_of
from gateway.faces import GAP, Encoder, SseFace, on_one_line, without_tombstone
from shared import events
from shared.events import Accepted, Event

TEXT, REFUSAL, REASONING = "output_text", "refusal", "reasoning_text"
_FIELD = {TEXT: "text", REFUSAL: "refusal", REASONING: "text"}
"""The field that holds a part's text, by the part's type."""
_PIECES_MAX = 1024
"""Pieces of a text are joined after so many: each piece costs 60 bytes of memory, for about 6 characters."""
_CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesFace(SseFace):
    stateful = True
    resumable = False  # the SDKs take the orderly end of a body for the end of the answer

    def encoder(self, stream_id: str) -> ResponsesEncoder:
        return ResponsesEncoder(stream_id)


RESPONSES = ResponsesFace()


class ResponsesEncoder(Encoder):
    """The state of a response. It is fed the whole log in order, and returns the next events; `snapshot` is the object."""

    name = "responses"
    __slots__ = (
        "_call_ids",
        "_calls",
        "_done",
        "_head",
        "_index",
        "_item",
        "_logprobs",
        "_part",
        "_pieces",
        "_response",
        "_stream_id",
        "ended",
        "next_number",
    )

    def __init__(self, stream_id: str) -> None:
        self._stream_id = stream_id
        self.next_number = 0
        """The `sequence_number` of the next event."""
        self.ended = False
        self._response: dict[str, Any] = {}
        self._index = 0
        """The `output_index` of the newest item, from 1 on."""
        self._done: dict[int, dict[str, Any]] = {}
        """The items that have ended, without those of an attempt that was taken back, by their index."""
        self._item: dict[str, Any] | None = None
        """The open message or reasoning item."""
        self._part: str | None = None
        """The type of the open part of `_item`; the part's text is in `_pieces`."""
        self._pieces: list[bytes] = []
        self._logprobs: list[dict[str, Any]] = []
        self._head: str | None = None
        """The beginning of a token's event, while a part of plain text is open."""
        self._calls: list[_Call] = []
        """The open calls, oldest first."""
        self._call_ids: set[str] = set()

    @property
    def exists(self) -> bool:
        """Whether the log began with a request; a deleted stream's log does not."""
        return bool(self._response)

    # --- Encoder

    def token(self, event_id: bytes, value: bytes) -> bytes:
        head = self._head
        if head is None:
            return self._text_piece(TEXT, value.decode())
        text = value.decode()
        self._pieces.append(value)
        number = self.next_number
        self.next_number = number + 1
        if not number % _PIECES_MAX:
            self._pieces = [b"".join(self._pieces)]
        # For a line this long an f-string and json's C function cost a fifth less than orjson and a bytes format.
        return f'{head}{encode_basestring_ascii(text)},"sequence_number":{number}}}\n\n'.encode()

    def other(self, event: Event) -> bytes:
        _, field, value = without_tombstone(event)
        if self.ended or not (self._response or field in (events.ACCEPTED, events.FAILED)):
            return b""  # nothing counts after the first terminal event
        if field in events.MESSAGES:
            return b""
        if field == events.DELTA:
            return self._delta(orjson.loads(value))
        if field == events.OWN:
            return self._event("keepalive", midstream=orjson.Fragment(value))
        if field == events.ACCEPTED:
            return self._accepted(Accepted.load(value))
        if field == events.FAILED and not self._response:
            self._response = response_object(self._stream_id, None)  # the request cannot be read
        payload = orjson.loads(value)
        if field == events.STARTED:
            self._response |= {"status": "in_progress", "model": payload["model"]}
            return self._event("response.in_progress", response=self._response)
        if field == events.RESTARTED:
            return self._restarted(payload)
        if field == GAP:
            message = f"the events from {payload['requested']} to before {payload['first_available']} are gone"
            return self._event("error", code="events_missing", message=message, param=None)
        return self._end(field, payload)

    def give_up(self, failed: Event) -> bytes:
        try:
            return self.other(failed)
        except Exception:  # the open items cannot be encoded: the end without them
            self._item, self._part, self._head, self._calls, self._done = None, None, None, [], {}
            self._response = response_object(self._stream_id, None)
            return self.other(failed)

    def snapshot(self) -> dict[str, Any]:
        """Returns the response as it is by now, with the open items as far as they have come."""
        output = dict(self._done)
        if self._item is not None:
            content = self._item["content"] if self._part is None else [*self._item["content"], self._open_part()]
            output[self._index_of(self._item)] = {**self._item, "content": content}
        for call in self._calls:
            output[call.index] = {**call.item, "arguments": "".join(call.pieces)}
        return {**self._response, "output": [output[index] for index in sorted(output)]}

    # --- the response

    def _accepted(self, accepted: Accepted) -> bytes:
        self._response = response_object(self._stream_id, accepted)
        created = self._event("response.created", response=self._response)
        if self._response["status"] == "queued":
            created += self._event("response.queued", response=self._response)
        return created

    def _restarted(self, payload: dict[str, Any]) -> bytes:
        """Begins a new attempt, which keeps all items or none."""
        self._response |= {"status": "in_progress", "model": payload["model"]}
        if payload["base"] or not self._index:
            return b""
        dropped = self._close_all("incomplete")
        self._done.clear()
        return dropped + self._event("response.in_progress", response=self._response)

    def _end(self, field: bytes, payload: dict[str, Any]) -> bytes:
        response, error = self._response, b""
        if field == events.DONE:
            cut_off = _CUT_OFF.get(payload.get("finish_reason") or "")
            response["usage"] = usage_of(payload.get("usage"))
            if cut_off is None:
                kind = status = "completed"
                response["completed_at"] = None if payload.get("time") is None else int(payload["time"])
            else:
                kind = status = "incomplete"
                response["incomplete_details"] = {"reason": cut_off}
        elif field == events.FAILED:
            kind = status = "failed"
            response["error"] = error_of(payload)
        else:
            kind, status = "incomplete", "cancelled"  # the API has this status, but no event for it
        closed = self._close_all("completed" if status == "completed" else "incomplete")
        response |= {"status": status, "output": [self._done[index] for index in sorted(self._done)]}
        if status == "failed":
            failed = response["error"]
            error = self._event("error", code=failed["type"], message=failed["message"], param=None)
        last = self._event(f"response.{kind}", response=response)
        self.ended = True
        return closed + error + last

    # --- text and reasoning

    def _delta(self, payload: dict[str, Any]) -> bytes:
        """Encodes a delta that is more than plain text. Only the first choice is shown: the API has no others."""
        if payload.get("index"):
            return b""
        delta, logprobs = payload.get("delta") or {}, (payload.get("logprobs") or {}).get("content") or []
        encoded = b""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str):
            encoded += self._text_piece(REASONING, reasoning)
        if isinstance(delta.get("content"), str):
            listed = [_logprob(logprob) for logprob in logprobs if isinstance(logprob, dict)]
            encoded += self._text_piece(TEXT, delta["content"], listed)
        if isinstance(delta.get("refusal"), str):
            encoded += self._text_piece(REFUSAL, delta["refusal"])
        for piece in delta.get("tool_calls") or ():
            encoded += self._call(piece)
        return encoded

    def _text_piece(self, kind: str, text: str, logprobs: list[dict[str, Any]] | None = None) -> bytes:
        if not text:
            return b""
        begun = b"" if self._part == kind else self._begin_part(kind)
        item = self._item
        assert item is not None
        self._pieces.append(text.encode())
        more: dict[str, Any] = {}
        if kind == TEXT:
            more["logprobs"] = logprobs or []
            self._logprobs += more["logprobs"]
        return begun + self._event(f"response.{kind}.delta", **self._place(), **more, delta=text)

    def _begin_part(self, kind: str) -> bytes:
        item_type = "reasoning" if kind == REASONING else "message"
        item, begun = self._item, b""
        if item is not None and item["type"] != item_type:
            begun += self._close_item("completed")
            item = None
        if item is None:
            more: dict[str, Any] = {"summary": []} if item_type == "reasoning" else {"role": "assistant"}
            item = {"id": self._new_id(item_type), "type": item_type, "status": "in_progress", **more, "content": []}
            begun += self._event("response.output_item.added", output_index=self._index - 1, item=item)
            self._item = item
        else:
            begun += self._close_part()
        self._part, self._pieces, self._logprobs = kind, [], []
        begun += self._event("response.content_part.added", **self._place(), part=self._open_part())
        if kind == TEXT:
            fields = orjson.dumps({"type": "response.output_text.delta", **self._place(), "logprobs": []}).decode()
            self._head = f'event: response.output_text.delta\ndata: {fields[:-1]},"delta":'
        return begun

    def _close_part(self) -> bytes:
        kind, item = self._part, self._item
        if kind is None or item is None:
            return b""
        part, place = self._open_part(), self._place()
        more = {"logprobs": self._logprobs} if kind == TEXT else {}
        item["content"].append(part)
        self._part = self._head = None
        return self._event(
            f"response.{kind}.done", **place, **more, **{_FIELD[kind]: part[_FIELD[kind]]}
        ) + self._event("response.content_part.done", **place, part=part)

    def _close_item(self, status: str) -> bytes:
        closed, item = self._close_part(), self._item
        if item is None:
            return b""
        index = self._index_of(item)
        self._item = None
        item["status"] = status
        self._done[index] = item
        return closed + self._event("response.output_item.done", output_index=index, item=item)

    def _open_part(self) -> dict[str, Any]:
        text, kind = b"".join(self._pieces).decode(), self._part
        assert kind is not None
        part: dict[str, Any] = {"type": kind, _FIELD[kind]: text}
        return {**part, "annotations": [], "logprobs": self._logprobs} if kind == TEXT else part

    def _place(self) -> dict[str, Any]:
        """Returns the fields that name the open part."""
        item = self._item
        assert item is not None
        return {"item_id": item["id"], "output_index": self._index_of(item), "content_index": len(item["content"])}

    # --- calls

    def _call(self, piece: dict[str, Any]) -> bytes:
        function, place = piece.get("function") or {}, piece.get("index") or 0
        call = next((call for call in reversed(self._calls) if call.place == place), None)
        encoded = b""
        if call is None:
            encoded += self._close_item("completed")
            call = self._new_call(place, piece.get("id") or "", function.get("name") or "")
            encoded += self._event("response.output_item.added", output_index=call.index, item=call.item)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            call.pieces.append(arguments)
            encoded += self._event(
                "response.function_call_arguments.delta",
                item_id=call.item["id"],
                output_index=call.index,
                delta=arguments,
            )
        return encoded

    def _new_call(self, place: int, given_id: str, name: str) -> _Call:
        item_id = self._new_id("function_call")
        call_id = given_id or item_id
        if call_id in self._call_ids:  # e.g. in an earlier attempt; the SDK tells calls apart by call_id alone
            call_id = f"{call_id}_{self._index - 1}"
        self._call_ids.add(call_id)
        call = _Call(self._index - 1, place, item_id, call_id, name)
        self._calls.append(call)
        return call

    def _close_call(self, call: _Call, status: str) -> bytes:
        item, closed = call.item, b""
        item |= {"arguments": "".join(call.pieces), "status": status}
        self._done[call.index] = item
        if status == "completed":  # incomplete arguments must not look complete
            closed = self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=call.index,
                name=item["name"],
                arguments=item["arguments"],
            )
        return closed + self._event("response.output_item.done", output_index=call.index, item=item)

    def _close_all(self, status: str) -> bytes:
        """Closes all open items, in the order in which they were opened."""
        calls, self._calls = self._calls, []
        item = self._item
        before = [call for call in calls if item is None or call.index < self._index_of(item)]
        closed = [self._close_call(call, status) for call in before]
        closed.append(self._close_item(status))
        closed += [self._close_call(call, status) for call in calls[len(before) :]]
        return b"".join(closed)

    # --- helpers

    def _new_id(self, item_type: str) -> str:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[item_type]
        self._index += 1
        return f"{prefix}_{self._stream_id}_{self._index - 1}"

    @staticmethod
    def _index_of(item: dict[str, Any]) -> int:
        return int(item["id"].rpartition("_")[2])

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self.next_number
        data = on_one_line(orjson.dumps({"type": kind, **fields, "sequence_number": number}))
        self.next_number = number + 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class _Call:
    """An open function call."""

    __slots__ = ("index", "item", "pieces", "place")

    def __init__(self, index: int, place: int, item_id: str, call_id: str, name: str) -> None:
        self.index = index
        """The item's `output_index`."""
        self.place = place
        """The call's `index` in Chat Completions, which all of its pieces have."""
        self.pieces: list[str] = []
        self.item: dict[str, Any] = {
            "id": item_id,
            "type": "function_call",
            "status": "in_progress",
            "call_id": call_id,
            "name": name,
            "arguments": "",
        }


def _logprob(logprob: dict[str, Any]) -> dict[str, Any]:
    """Returns a token's log probability, with defaults for required fields that some providers leave out."""
    listed = logprob.get("top_logprobs")
    top = [_logprob(other) for other in listed if isinstance(other, dict)] if isinstance(listed, list) else []
    return {
        "token": logprob.get("token") or "",
        "logprob": logprob.get("logprob") or 0.0,
        "bytes": logprob.get("bytes") or [],
        "top_logprobs": top,
    }

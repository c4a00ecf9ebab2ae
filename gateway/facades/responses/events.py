"""A log of chat deltas as the events of the Responses API: one state machine for those who follow and those who fetch.

    created ─► [queued] ─► in_progress ─► items, one after the other ─► completed │ incomplete │ failed

    message     item.added ─► part.added ─► output_text.delta … ─► output_text.done ─► part.done ─► item.done
                              (a refusal is a part, too)
    reasoning   the same with reasoning_text
    call        item.added ─► function_call_arguments.delta … ─► arguments.done ─► item.done

At most one message or reasoning item is open; what is of another kind closes it. Calls stay open to the end, because
Chat Completions may mix the pieces of several. What is open when an answer is cut off ends as `incomplete`.

Everything is decided by the log: numbers count from 0, ids are the stream's and the item's place. So every gateway, at
any time, writes the same bytes.
"""

from __future__ import annotations

from json.encoder import encode_basestring_ascii
from typing import Any

import orjson

from gateway.facades.responses.response_object import described, error_of, usage_of
from gateway.faces import GAP, Encoder, SseFace, without_tombstone
from shared import events
from shared.events import Accepted, Event

TEXT, REFUSAL, REASONING = "output_text", "refusal", "reasoning_text"
_FIELD = {TEXT: "text", REFUSAL: "refusal", REASONING: "text"}
"""Where a part has what it says."""
_PIECES_MAX = 1024
"""So many pieces of a text are kept before they are joined: a piece costs 60 bytes of Python, its letters 6."""
_CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesFace(SseFace):
    stateful = True
    resumable = False  # the SDKs take the orderly end of a body for the end of the answer

    def encoder(self, stream_id: str) -> ResponsesEncoder:
        return ResponsesEncoder(stream_id)


RESPONSES = ResponsesFace()


class ResponsesEncoder(Encoder):
    """What has been said so far. Fed the whole log in order, it says the next events, and what the response is by now."""

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
        """The items that have ended and stand, by their index."""
        self._item: dict[str, Any] | None = None
        """The message or reasoning that is open."""
        self._part: str | None = None
        """The kind of its part that is open; the part's text is in `_pieces`."""
        self._pieces: list[bytes] = []
        self._logprobs: list[dict[str, Any]] = []
        self._head: str | None = None
        """How the delta of a token begins, while a part of plain text is open."""
        self._calls: list[_Call] = []
        """Those that are open, oldest first."""
        self._call_ids: set[str] = set()

    @property
    def exists(self) -> bool:
        """Whether the log began with a request: that of a deleted stream does not."""
        return bool(self._response)

    # --- Encoder

    def token(self, event_id: bytes, value: bytes) -> bytes:
        head = self._head
        if head is None:
            return self._speak(TEXT, value.decode())
        text = value.decode()
        self._pieces.append(value)
        number = self.next_number
        self.next_number = number + 1
        if not number % _PIECES_MAX:
            self._pieces = [b"".join(self._pieces)]
        # An f-string and json's own C function: a fifth less than orjson and a format of bytes, for so long a line.
        return f'{head}{encode_basestring_ascii(text)},"sequence_number":{number}}}\n\n'.encode()

    def other(self, event: Event) -> bytes:
        _, field, value = without_tombstone(event)
        if self.ended or not (self._response or field in (events.ACCEPTED, events.FAILED)):
            return b""  # the first terminal event is the last that counts
        if field == events.DELTA:
            return self._delta(orjson.loads(value))
        if field == events.ACCEPTED:
            return self._accepted(Accepted.load(value))
        if field == events.FAILED and not self._response:
            self._response = described(self._stream_id, None)  # what was asked for cannot be read
        told = orjson.loads(value)
        if field == events.STARTED:
            self._response |= {"status": "in_progress", "model": told["model"]}
            return self._event("response.in_progress", response=self._response)
        if field == events.RESTARTED:
            return self._restarted(told)
        if field == GAP:
            message = f"the events from {told['requested']} to before {told['first_available']} are gone"
            return self._event("error", code="events_missing", message=message, param=None)
        return self._end(field, told)

    def give_up(self, failed: Event) -> bytes:
        try:
            return self.other(failed)
        except Exception:  # the open items are what cannot be shown: the end without them
            self._item, self._part, self._head, self._calls, self._done = None, None, None, [], {}
            self._response = described(self._stream_id, None)
            return self.other(failed)

    def snapshot(self) -> dict[str, Any]:
        """The response as it is by now, with what has been said of the items that are open."""
        output = dict(self._done)
        if self._item is not None:
            content = self._item["content"] if self._part is None else [*self._item["content"], self._open_part()]
            output[self._index_of(self._item)] = {**self._item, "content": content}
        for call in self._calls:
            output[call.index] = {**call.item, "arguments": "".join(call.pieces)}
        return {**self._response, "output": [output[index] for index in sorted(output)]}

    # --- the response

    def _accepted(self, accepted: Accepted) -> bytes:
        self._response = described(self._stream_id, accepted)
        created = self._event("response.created", response=self._response)
        if self._response["status"] == "queued":
            created += self._event("response.queued", response=self._response)
        return created

    def _restarted(self, told: dict[str, Any]) -> bytes:
        """A new attempt keeps all that was said, or nothing of it."""
        self._response |= {"status": "in_progress", "model": told["model"]}
        if told["base"] or not self._index:
            return b""
        dropped = self._close_all("incomplete")
        self._done.clear()
        return dropped + self._event("response.in_progress", response=self._response)

    def _end(self, field: bytes, told: dict[str, Any]) -> bytes:
        response, error = self._response, b""
        if field == events.DONE:
            cut_off = _CUT_OFF.get(told.get("finish_reason") or "")
            response["usage"] = usage_of(told.get("usage"))
            if cut_off is None:
                kind = status = "completed"
                response["completed_at"] = None if told.get("time") is None else int(told["time"])
            else:
                kind = status = "incomplete"
                response["incomplete_details"] = {"reason": cut_off}
        elif field == events.FAILED:
            kind = status = "failed"
            response["error"] = error_of(told)
        else:
            kind, status = "incomplete", "cancelled"  # the API has this status, and no event of its own for it
        closed = self._close_all("completed" if status == "completed" else "incomplete")
        response |= {"status": status, "output": [self._done[index] for index in sorted(self._done)]}
        if status == "failed":
            failed = response["error"]
            error = self._event("error", code=failed["type"], message=failed["message"], param=None)
        last = self._event(f"response.{kind}", response=response)
        self.ended = True
        return closed + error + last

    # --- what is said

    def _delta(self, told: dict[str, Any]) -> bytes:
        """What is more than plain text; further choices than the first have no place here."""
        if told.get("index"):
            return b""
        delta, logprobs = told.get("delta") or {}, (told.get("logprobs") or {}).get("content") or []
        said = b""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str):
            said += self._speak(REASONING, thought)
        if isinstance(delta.get("content"), str):
            said += self._speak(TEXT, delta["content"], [_logprob(one) for one in logprobs if isinstance(one, dict)])
        if isinstance(delta.get("refusal"), str):
            said += self._speak(REFUSAL, delta["refusal"])
        for piece in delta.get("tool_calls") or ():
            said += self._call(piece)
        return said

    def _speak(self, kind: str, said: str, logprobs: list[dict[str, Any]] | None = None) -> bytes:
        if not said:
            return b""
        begun = b"" if self._part == kind else self._begin_part(kind)
        item = self._item
        assert item is not None
        self._pieces.append(said.encode())
        more: dict[str, Any] = {}
        if kind == TEXT:
            more["logprobs"] = logprobs or []
            self._logprobs += more["logprobs"]
        return begun + self._event(f"response.{kind}.delta", **self._place(), **more, delta=said)

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
            told = orjson.dumps({"type": "response.output_text.delta", **self._place(), "logprobs": []}).decode()
            self._head = f'event: response.output_text.delta\ndata: {told[:-1]},"delta":'
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
        said, kind = b"".join(self._pieces).decode(), self._part
        assert kind is not None
        part: dict[str, Any] = {"type": kind, _FIELD[kind]: said}
        return {**part, "annotations": [], "logprobs": self._logprobs} if kind == TEXT else part

    def _place(self) -> dict[str, Any]:
        """Where the open part is."""
        item = self._item
        assert item is not None
        return {"item_id": item["id"], "output_index": self._index_of(item), "content_index": len(item["content"])}

    # --- calls

    def _call(self, piece: dict[str, Any]) -> bytes:
        function, place = piece.get("function") or {}, piece.get("index") or 0
        call = next((one for one in reversed(self._calls) if one.place == place), None)
        said = b""
        given_id = piece.get("id") or ""
        if call is None or given_id not in ("", call.given_id):  # some providers count all calls as the first
            said += self._close_item("completed")
            call = self._new_call(place, given_id, function.get("name") or "")
            said += self._event("response.output_item.added", output_index=call.index, item=call.item)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            call.pieces.append(arguments)
            said += self._event(
                "response.function_call_arguments.delta",
                item_id=call.item["id"],
                output_index=call.index,
                delta=arguments,
            )
        return said

    def _new_call(self, place: int, given_id: str, name: str) -> _Call:
        item_id = self._new_id("function_call")
        call_id = given_id or item_id
        if call_id in self._call_ids:  # of an earlier attempt, say; the SDK knows a call by its call_id alone
            call_id = f"{call_id}_{self._index - 1}"
        self._call_ids.add(call_id)
        call = _Call(self._index - 1, place, given_id, item_id, call_id, name)
        self._calls.append(call)
        return call

    def _close_call(self, call: _Call, status: str) -> bytes:
        item, closed = call.item, b""
        item |= {"arguments": "".join(call.pieces), "status": status}
        self._done[call.index] = item
        if status == "completed":  # half of a call's arguments must not look as if they were all
            closed = self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=call.index,
                name=item["name"],
                arguments=item["arguments"],
            )
        return closed + self._event("response.output_item.done", output_index=call.index, item=item)

    def _close_all(self, status: str) -> bytes:
        """Whatever is open, in the order in which it was begun."""
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

    def _event(self, kind: str, **told: Any) -> bytes:
        number = self.next_number
        data = orjson.dumps({"type": kind, **told, "sequence_number": number})
        self.next_number = number + 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class _Call:
    """A function call that is open."""

    __slots__ = ("given_id", "index", "item", "pieces", "place")

    def __init__(self, index: int, place: int, given_id: str, item_id: str, call_id: str, name: str) -> None:
        self.index = index
        """Its `output_index`."""
        self.place = place
        """Which of the calls it is, as Chat Completions counts them."""
        self.given_id = given_id
        """Its id as the provider has it."""
        self.pieces: list[str] = []
        self.item: dict[str, Any] = {
            "id": item_id,
            "type": "function_call",
            "status": "in_progress",
            "call_id": call_id,
            "name": name,
            "arguments": "",
        }


def _logprob(told: dict[str, Any]) -> dict[str, Any]:
    """A token's log probability; providers leave out what the type requires."""
    listed = told.get("top_logprobs")
    top = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    one = {"token": told.get("token") or "", "logprob": told.get("logprob") or 0.0, "bytes": told.get("bytes") or []}
    return {**one, "top_logprobs": [{**_logprob(other)} for other in top]}

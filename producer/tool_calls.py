"""Gathers the pieces of tool calls: whatever numbering a provider uses, all readers of a stream see the same calls.

Some servers give all calls the index 0, or none; some send another id with each piece, or no id at all. The rule:

- A piece belongs to a new call if its index is new, or if it brings another id and a name.
- Without an index its id counts, else its place in the chunk.
- Where there are no ids, a name begins a new call if it is another name, or if the arguments so far are complete.

The pieces are then numbered from 0 in the order in which their calls began. A call's first piece has `id`, `type` and the name,
no other has; an id that is missing is made up. A call is held back until its name has come.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import orjson

CALLS_MAX = 128
"""Of one choice: as many as OpenAI allows functions."""
_IDS_MAX = 1024
"""Ids remembered: a server that sends another one with each piece must not fill the memory."""
_OWN_FIELDS = frozenset({"index", "id", "type", "function", "custom"})


class _Call:
    __slots__ = ("has_given_id", "id", "more", "name", "number", "pieces", "type")

    def __init__(self) -> None:
        self.number = -1
        """Its index, as readers get it; -1: it is held back."""
        self.id = self.name = self.type = ""
        self.has_given_id = False
        self.pieces: list[str] = []
        """Of its arguments."""
        self.more: dict[str, Any] = {}
        """Other fields of the pieces that are held back."""

    def is_complete(self) -> bool:
        """Returns whether the arguments so far are a JSON object."""
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        try:
            return type(orjson.loads("".join(self.pieces))) is dict
        except orjson.JSONDecodeError:
            return False


class ToolCalls:
    """The tool calls of one choice of an answer. `odd` is called with the kind of what had to be repaired."""

    def __init__(self, odd: Callable[[str], None]) -> None:
        self._odd = odd
        self._calls = 0
        self._begun: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_place: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._ids: set[str] = set()
        """The ids that readers have got."""

    def __len__(self) -> int:
        """The number of calls that readers know."""
        return len(self._begun)

    def take(self, pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the pieces of one chunk (of the shape of `chunk_shapes.calls`) as readers get them: without those that add nothing."""
        return [shown for place, piece in enumerate(pieces) if (shown := self._take(piece, place)) is not None]

    def _take(self, piece: dict[str, Any], place: int) -> dict[str, Any] | None:
        field, text = ("custom", "input") if type(piece.get("custom")) is dict else ("function", "arguments")
        function = piece.get(field) or {}
        name = function.get("name")
        name = name if type(name) is str else ""
        given = function.get(text)
        arguments = given if type(given) is str else ""
        call = self._call_of(piece, name, place)
        if call is None:
            return None
        more = {key: value for key, value in piece.items() if key not in _OWN_FIELDS}
        beside = {key: value for key, value in function.items() if key not in ("name", text)}
        if arguments:
            call.pieces.append(arguments)
        call.type = call.type or piece.get("type") or ""
        if call.number >= 0:
            if not (arguments or more or beside):
                return None
            return {"index": call.number, **more, field: {**beside, text: arguments}}
        call.more |= more
        call.name = name
        if not name:
            return None
        self._begin(call)
        fields = {"index": call.number, "id": call.id, "type": call.type or field, **call.more}
        return {**fields, field: {**beside, "name": name, text: "".join(call.pieces)}}

    def _begin(self, call: _Call) -> None:
        call.number = len(self._begun)
        self._begun.append(call)
        if not call.id or call.id in self._ids:
            self._odd("call_id")
            call.id = f"{call.id}_{call.number}" if call.id else f"call_{secrets.token_hex(12)}"
        self._ids.add(call.id)

    def _call_of(self, piece: dict[str, Any], name: str, place: int) -> _Call | None:
        """Returns the call that a piece belongs to; None if there are too many."""
        index, given_id = piece.get("index"), piece.get("id") or ""
        by_id = self._by_id.get(given_id)
        if index is not None:
            call = self._by_index.get(index)
        elif given_id and (by_id is not None or name):
            call = by_id
        else:
            call = self._by_place.get(place)
        if index is None:
            self._odd("call_index")
        if call is not None and by_id is not None and name:
            call = by_id
        if call is not None and self._begins_another(call, given_id, name):
            self._odd("call_index")
            call = None
        if call is None:
            if self._calls >= CALLS_MAX:
                self._odd("tool_calls")
                return None
            self._calls += 1
            call = _Call()
            call.id = given_id
        elif given_id and by_id is not call:
            if call.id:
                self._odd("call_id")
            elif call.number < 0:
                call.id = given_id
        self._by_place[place] = call
        if index is not None:
            self._by_index[index] = call
        if given_id:
            call.has_given_id = True
            if by_id is not call and len(self._by_id) < _IDS_MAX:
                self._by_id[given_id] = call
        return call

    def _begins_another(self, call: _Call, given_id: str, name: str) -> bool:
        if not name or not call.name:
            return False
        if given_id and call.has_given_id:
            return self._by_id.get(given_id) is not call
        return bool(call.pieces) and (name != call.name or call.is_complete())

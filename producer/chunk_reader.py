"""Reads the event stream of an OpenAI-compatible provider: bytes in, items of the log out.

The chunks are read as JSON without typed objects, which would cost 20 times as much per token. A chunk that is nothing but
text becomes a token. Whatever else a delta carries (tool calls, refusals, reasoning, log probabilities, further choices) is
kept as the provider sent it, once its shape has been checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from producer import chunk_shapes as shapes
from producer.chunk_shapes import CHOICES_MAX, LEVELS_MAX, clean, fitting, storable
from producer.provider import ProviderError, Unavailable
from producer.provider_errors import raise_for_error_chunk
from shared.events import Item

_LINE_BYTES_MAX = 8 << 20
"""A provider's line may carry an image or a long tool call; without any bound it could fill the worker's memory."""
_LARGE_LINE_BYTES = 64 << 10
_PLACES_MAX = 100_000
"""Values in one line: as Python objects they take 20 times the bytes of `[[],[],…`, and so much time that all others wait."""
_ENVELOPE = frozenset({"id", "object", "created", "choices", "usage", "obfuscation", "error"})
"""Fields of a chunk that are read, or say nothing about the answer."""
_CHOICE = frozenset({"index", "delta", "logprobs", "finish_reason"})
"""Fields of a choice that are read."""


class ChunkReader:
    """Turns the bytes of a provider's event stream into items; holds at most one unfinished line.

    The items have the shapes of `producer.chunk_shapes`. `odd` is called with the kind of each value that had another shape.
    """

    def __init__(self, odd: Callable[[str], None] = lambda kind: None) -> None:
        self._odd = odd
        self._found: set[str] = set()
        """The kinds of odd values found in the chunk that is being read."""
        self._rest = bytearray()
        self.finish_reason: str | None = None
        self._usage: Any = None
        self.about: dict[str, dict[str, Any]] = {}
        """`Finish.about`: taken from the first chunk and from those with a finish_reason or usage; the others repeat it."""
        self.complete = False
        """Whether `[DONE]` was read: nothing more will come."""
        self.error: ProviderError | None = None
        """An error chunk, or something that is no chunk, was read. To be raised once the items before it have been passed on."""

    @property
    def ended(self) -> bool:
        """Whether the answer is at its end: `feed` must not be called again."""
        return self.complete or self.error is not None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The newest usage that came. Checked once, at the end, since some providers send it with each token."""
        shaped = shapes.usage(self._usage, self._odd_at("usage")) if self._usage else None
        usage = None if shaped is None or shaped is shapes.LEFT_OUT else fitting(shaped, self._odd_at("usage"))
        self._report()
        return usage

    def take_error(self) -> ProviderError:
        """Returns the error, to be raised, and forgets it: its traceback would keep the whole answer in memory."""
        error, self.error = self.error, None
        assert error is not None
        self.complete = True
        return error.with_traceback(None)

    def feed(self, data: bytes) -> list[Item]:
        """Returns the items in the next bytes, up to an error or the end."""
        lines = data.split(b"\n")
        rest = self._rest
        if rest and len(lines) > 1:
            lines[0] = bytes(rest) + lines[0]
            rest.clear()
        rest += lines.pop()
        items: list[Item] = []
        found = self._found
        try:
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.complete = True
                    return items
                if payload:
                    self._chunk(self._json(payload), payload, items)
                    if found:
                        self._report()
            if len(rest) > _LINE_BYTES_MAX:
                raise Unavailable(f"the provider sent a line of more than {_LINE_BYTES_MAX} bytes")
        except ProviderError as error:
            self.error = error.with_traceback(None)  # a traceback would hold this frame
            self._report()
        return items

    def _chunk(self, chunk: Any, payload: bytes, items: list[Item]) -> None:
        if type(chunk) is not dict:
            raise Unavailable("the provider sent a chunk that is not an object")
        if chunk.get("error"):
            raise_for_error_chunk(chunk["error"])
        if chunk.get("usage"):
            if type(chunk["usage"]) is dict or self._usage is None:
                self._usage = chunk["usage"]
            self._note("provider", chunk, _ENVELOPE)
        elif not self.about:
            self._note("provider", chunk, _ENVELOPE)
        choices = chunk.get("choices")
        if type(choices) is not list:
            if choices:
                self._found.add("choices")
            return
        if len(choices) > CHOICES_MAX:
            self._found.add("choices")
            choices = choices[:CHOICES_MAX]
        for choice in choices:
            if (
                type(choice) is dict
                and type(delta := choice.get("delta")) is dict
                and len(delta) == 1
                and type(content := delta.get("content")) is str
                and content
                and not choice.get("index")
                and not choice.get("logprobs")
            ):
                items.append(content if content.isascii() else clean(content))
                if choice.get("finish_reason"):
                    self._end(chunk, choice)
            elif type(choice) is dict:
                self._unusual(chunk, choices, choice, payload, items)
            elif choice is not None:
                self._found.add("choice")

    def _end(self, chunk: dict[str, Any], choice: dict[str, Any]) -> None:
        """Notes the finish_reason of the first choice."""
        reason = shapes.finish_reason(choice["finish_reason"], self._odd_at("finish_reason"))
        if reason is not None:
            self.finish_reason = reason
            self._note("provider", chunk, _ENVELOPE)
            self._note("choice", choice, _CHOICE)

    def _unusual(
        self, chunk: dict[str, Any], choices: list[Any], choice: dict[str, Any], payload: bytes, items: list[Item]
    ) -> None:
        """Takes a choice that is more, or less, than a piece of plain text."""
        index = 0
        if choice.get("index"):
            index = shapes.INDEX(choice["index"], self._odd_at("index"))
            if index is shapes.LEFT_OUT:
                index = next(place for place, it in enumerate(choices) if it is choice)
        delta = self._shaped(choice.get("delta") or {})
        beside_delta: dict[str, Any] = {}
        if choice.get("logprobs"):
            logprobs = shapes.LOGPROBS(choice["logprobs"], self._odd_at("logprobs"))
            if logprobs is not shapes.LEFT_OUT:
                beside_delta["logprobs"] = logprobs
        if index:
            beside_delta["index"] = index
            reason = shapes.finish_reason(choice.get("finish_reason"), self._odd_at("finish_reason"))
            if reason is not None:
                own = {key: value for key, value in choice.items() if key not in _CHOICE and value is not None}
                own = fitting(own, self._odd_at("unstorable"))
                beside_delta = {**own, **beside_delta, "finish_reason": reason}
        elif choice.get("finish_reason"):
            self._end(chunk, choice)
        if not beside_delta and len(delta) == 1 and type(delta.get("content")) is str:
            items.append(clean(delta["content"]))
        elif delta or "logprobs" in beside_delta or "finish_reason" in beside_delta:
            items.append(self._dump({"delta": delta, **beside_delta}, payload))

    def _shaped(self, delta: Any) -> dict[str, Any]:
        """Returns a delta without its empty fields, each of the others in its documented shape."""
        if type(delta) is not dict:
            self._found.add("delta")
            return {}
        kept: dict[str, Any] = {}
        for name, value in delta.items():
            if name == "role" or value in (None, "", []):
                continue
            shape = shapes.DELTA.get(name)
            if shape is not None:
                value = shape(value, self._odd_at(name))
                if value is shapes.LEFT_OUT or value in ("", []):
                    continue
            kept[name] = value
        return kept

    def _note(self, name: str, sent: dict[str, Any], known: frozenset[str]) -> None:
        """Keeps, under this name, the fields that are not known: they have no place elsewhere in the log."""
        kept = self.about.get(name, {})
        fields = {key: value for key, value in sent.items() if key not in known and value not in (None, "", [], {})}
        if any(kept.get(key) != value for key, value in fields.items()):
            for key in fields.keys() & shapes.CHUNK.keys():
                if shapes.CHUNK[key](fields[key], self._odd_at(key)) is shapes.LEFT_OUT:
                    del fields[key]
            kept = fitting(kept | fields, self._odd_at("unstorable"))
        self.about[name] = kept

    def _odd_at(self, kind: str) -> Callable[[], None]:
        return partial(self._found.add, kind)

    def _report(self) -> None:
        """Reports each kind once per chunk: a list may have a hundred thousand odd elements."""
        for kind in sorted(self._found):
            self._odd(kind)
        self._found.clear()

    def _json(self, payload: bytes) -> Any:
        try:
            if len(payload) > _LARGE_LINE_BYTES and _places_in(payload) > _PLACES_MAX:
                raise Unavailable(f"the provider sent a chunk of more than {_PLACES_MAX} values")
            return orjson.loads(payload)
        except orjson.JSONDecodeError:
            pass
        try:  # half of a surrogate pair, NaN, bytes that are no UTF-8: invalid JSON that some providers send
            text = payload.decode("utf-8", "replace")
            return json.loads(text, parse_constant=lambda _: None, parse_int=_finite, parse_float=_finite)
        except RecursionError:
            self._found.add("unstorable")
            return {}
        except ValueError:
            raise Unavailable("the provider sent a chunk that is not JSON") from None

    def _dump(self, value: dict[str, Any], payload: bytes) -> bytes:
        """Returns an item's JSON: of bounded depth, and without anything that JSON libraries cannot read back."""
        if payload.count(b"{") + payload.count(b"[") <= LEVELS_MAX:  # it cannot be nested deeper than that
            try:
                return orjson.dumps(value)
            except TypeError:
                pass  # half of a surrogate pair, or a number of more than 64 bits
        return orjson.dumps(storable(value, self._odd_at("unstorable")))


def _places_in(payload: bytes) -> int:
    """Returns an upper bound of the number of values in this JSON (commas and brackets inside texts count, too)."""
    return payload.count(b",") + payload.count(b"[") + payload.count(b"{")


def _finite(digits: str) -> int | float | None:
    """Returns a JSON number as Python's; None for one that would be infinite as a float."""
    if len(digits) < 20 and digits.lstrip("-").isdecimal():
        return int(digits)
    number = float(digits)
    return number if math.isfinite(number) else None

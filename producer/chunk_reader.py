"""Reads the answer of an OpenAI-compatible provider: bytes in, items of the log out.

The chunks are read as JSON without typed objects, which would cost 20 times as much per token. A chunk that is nothing but
text becomes a token. Whatever else a delta carries (tool calls, refusals, reasoning, log probabilities, further choices) is
kept as the provider sent it, once its shape has been checked and its tool calls have been gathered.

An answer that is no stream is read, too: a whole completion, in an event or as the body, is an answer in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from producer import chunk_shapes as shapes
from producer.alike_chunks import AlikeChunks
from producer.chunk_shapes import CHOICES_MAX, LEVELS_MAX, USAGE_BYTES_MAX, clean, fitting, storable
from producer.event_stream import LINE_BYTES_MAX, EventStream
from producer.finish import (
    GRACE_SECONDS,
    UNSURE_GRACE_SECONDS,
    FinishReason,
    end_of,
    finish_reason_of,
    is_known,
    later_of,
)
from producer.lenient_json import LARGE_BYTES, VALUES_MAX, has_too_many_values, json_or_text, lenient
from producer.provider import Finish, ProviderError, Unavailable
from producer.provider_errors import broke_off, is_error, raise_for_error, raise_for_page
from producer.tool_calls import ToolCalls
from shared.events import Item

_STRAY_BYTES_MAX = 4 << 10
"""Of lines that are no events, beside an answer: they may be the words of an error."""
_STRAY_LINE_BYTES = 64
"""What a kept line takes in memory beside its bytes."""
_ENVELOPE = frozenset({"id", "object", "created", "choices", "usage", "obfuscation", "error"})
"""Fields of a chunk that are read, or say nothing about the answer."""
_CHOICE = frozenset({"index", "delta", "message", "text", "logprobs", "finish_reason", "usage", "error"})
"""Fields of a choice that are read."""
_CALL_FIELDS = frozenset({"tool_calls", "function_call"})
_BESIDE_TEXT = frozenset(shapes.DELTA) | {"content_parts"}
"""Fields of a delta that are kept beside its text."""
_HIGH_SURROGATES = ("\ud800", "\udbff")


class _Choice:
    """What is known of one choice."""

    __slots__ = ("calls", "halves", "reason", "word")

    def __init__(self, odd: Callable[[str], None]) -> None:
        self.reason: FinishReason | None = None
        self.word = ""
        """The provider's own word for it."""
        self.calls = ToolCalls(odd)
        self.halves: dict[str, str] = {}
        """First halves of surrogate pairs whose second halves may come, by the delta's field."""


class ChunkReader(EventStream):
    """Turns the bytes of a provider's answer into items; holds at most one unfinished event, or an unfinished body of JSON.

    The items have the shapes of `producer.chunk_shapes`. `odd` is called with the kind of whatever is not as documented and was
    tolerated. `choices`: how many were requested.
    """

    __slots__ = (
        "_alike",
        "_at_end",
        "_choices_requested",
        "_first",
        "_found",
        "_further",
        "_has_content",
        "_has_halves",
        "_is_json_lines",
        "_is_whole",
        "_odd",
        "_stray",
        "_stray_bytes",
        "_usage",
        "about",
        "complete",
        "error",
        "grace_seconds",
    )

    def __init__(self, odd: Callable[[str], None] = lambda kind: None, *, choices: int = 1) -> None:
        super().__init__()
        self._odd = odd
        self._alike = AlikeChunks()
        self._found: set[str] = set()
        """The kinds of oddities in the chunk that is being read."""
        self._choices_requested = choices
        self._first = _Choice(self._found.add)
        self._further: dict[int, _Choice] = {}
        self._has_content = False
        self._has_halves = False
        self._usage: Any = None
        self.about: dict[str, dict[str, Any]] = {}
        """`Finish.about`: taken from the first chunk and from those with a finish_reason or usage; the others repeat it."""
        self.complete = False
        """Whether `[DONE]` was read: nothing more will come."""
        self._is_whole = False
        """Whether a whole completion was read, in an event or as the body."""
        self.error: ProviderError | None = None
        """An error chunk, or something that is no chunk, was read. To be raised once the items before it have been passed on."""
        self._at_end = False
        self._is_json_lines = False
        """Whether the chunks are lines of JSON without `data:`."""
        self.grace_seconds: float | None = None
        """How long a silence may last before the answer counts as whole; None: no finish_reason has come."""
        self._stray: list[bytes] = []
        self._stray_bytes = 0
        """Lines that are no events."""

    @property
    def ended(self) -> bool:
        """Whether the answer is at its end: `feed` must not be called again."""
        return self.complete or self.error is not None

    @property
    def finish_reason(self) -> FinishReason | None:
        """How the first choice has ended, as far as has been read; None: it has not."""
        is_done = self.complete or self._is_whole
        return end_of(
            self._first.reason,
            has_calls=len(self._first.calls) > 0,
            is_done=is_done,
            has_content=self._has_content,
        )

    @property
    def usage(self) -> dict[str, Any] | None:
        """The newest usage that came. Checked once, at the end, since some providers send it with each token."""
        shaped = shapes.usage(self._usage, self._odd_at("usage")) if self._usage else None
        usage = (
            None
            if shaped is None or shaped is shapes.LEFT_OUT
            else fitting(shaped, self._odd_at("usage"), bytes_max=USAGE_BYTES_MAX)
        )
        self._report()
        return usage

    def finish(self) -> Finish | None:
        """Returns how the answer has ended, once nothing more is to come; None: it was broken off."""
        reason = self.finish_reason
        is_cut_short = any(choice.reason is None for choice in self._further.values())
        if reason is None or (is_cut_short and not self.complete and not self._is_whole):
            return None
        if self._first.reason is None:
            self._odd("no_finish_reason")
        about = {name: fields for name, fields in self.about.items() if fields}
        word = self._first.word
        if word and word != reason:
            about["choice"] = {"native_finish_reason": word, **about.get("choice", {})}
        return Finish(reason.value, self.usage, about)

    def broken_off(self) -> ProviderError:
        """Returns the error for an answer that has not come to its end."""
        return broke_off(b"\n".join(self._stray).decode("utf-8", "replace"))

    def take_error(self) -> ProviderError:
        """Returns the error, to be raised, and forgets it: its traceback would keep the whole answer in memory."""
        error, self.error = self.error, None
        assert error is not None
        self.complete = True
        return error.with_traceback(None)

    def feed(self, data: bytes) -> list[Item]:
        """Returns the items in the next bytes, up to an error or the end."""
        if self.is_between_events and not self._has_halves and (texts := self._alike.texts(data)) is not None:
            return texts
        items: list[Item] = []
        try:
            self.parse(data, items)
        except _Done:
            self.complete = True
        except ProviderError as error:
            self.error = error.with_traceback(None)  # a traceback would hold this frame
        if self._found:
            self._report()
        if items:
            self._has_content = True
            if len(items) == 1 and type(text := items[0]) is str:
                self._alike.remember(data, text)
        return items

    def end(self) -> list[Item]:
        """Returns the items that the end of the body completes. Nothing may be fed after it."""
        items: list[Item] = []
        self._at_end = True
        try:
            if self.has_unfinished_line:
                self._found.add("line_end")
            self.parse_end(items)
            if not self.about and self._stray:
                self._take_body(b"\n".join(self._stray), items)
        except _Done:
            self.complete = True
        except ProviderError as error:
            self.error = error.with_traceback(None)
        self._flush_halves(items)
        self._report()
        self._has_content = self._has_content or bool(items)
        return items

    # --- EventStream

    def take_data(self, data: bytes, items: list[Item], event_type: bytes = b"", *, is_whole: bool = False) -> bool:
        try:
            if len(data) > LARGE_BYTES and has_too_many_values(data):
                raise Unavailable(f"the provider sent a chunk of more than {VALUES_MAX} values")
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = self._lenient_json(data, is_whole)
            if chunk is None:
                return False
        if type(chunk) is not dict or event_type:
            chunk = self._untyped(chunk, event_type, data)
        if chunk.get("error"):
            self._raise_error_of(chunk, data, items)
        if chunk.get("usage"):
            self._note_usage(chunk["usage"])
            self._note("provider", chunk, _ENVELOPE)
        elif not self.about:
            self._note("provider", chunk, _ENVELOPE)
        choices = chunk.get("choices")
        if type(choices) is not list:
            self._take_without_choices(chunk)
            return True
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
                and not self._has_halves
                and not choice.get("index")
                and not choice.get("logprobs")
            ):
                if content.isascii():
                    items.append(content)
                else:
                    self._take_text(content, items)
                if choice.get("finish_reason"):
                    self._end(
                        chunk, choice, self._first, has_text=True, is_first=not self._has_content and len(items) == 1
                    )
                    self._raise_if_failed(choice)
            elif type(choice) is dict:
                self._take_unusual(chunk, choices, choice, data, items)
            elif choice is not None:
                self._found.add("choice")
        if not choices:
            self._take_without_choices(chunk)
        return True

    def take_line(self, line: bytes, items: list[Item]) -> None:
        """Takes a line that is no event: JSON without `data:`, an error under a field name of its own, a page."""
        name, _, value = line.partition(b":")
        if name == b"error":
            self._found.add("error_shape")
            raise_for_error(json_or_text(value))
        begins_json = line.lstrip()[:1] in (b"{", b"[")
        if begins_json and not self._stray and (not self.about or len(line) <= LARGE_BYTES):
            chunk = json_or_text(line)
            if type(chunk) is dict and (chunk.get("error") or self._is_json_lines or not self.about or is_error(chunk)):
                self._is_json_lines = self._is_json_lines or not self.about
                self._found.add("not_an_event")
                self.take_data(line, items, is_whole=True)
                return
        self._stray_bytes += len(line) + _STRAY_LINE_BYTES
        if self._stray_bytes <= _STRAY_BYTES_MAX or (not self.about and self._stray_bytes <= LINE_BYTES_MAX):
            self._stray.append(line)
        elif not self.about:
            raise Unavailable(f"the provider sent no stream, but more than {LINE_BYTES_MAX} bytes")

    def found_mark(self) -> None:
        self._found.add("byte_order_mark")

    # --- what is no ordinary chunk

    def _untyped(self, chunk: Any, event_type: bytes, data: bytes) -> dict[str, Any]:
        """Returns a chunk as an object, without the event's type. Raises for an error."""
        if type(chunk) is list:
            chunk = next((it for it in chunk if type(it) is dict), None)
        if event_type.strip().lower() in (b"error", b"exception") and chunk is not None:
            self._found.add("error_shape")
            raise_for_error(chunk or json_or_text(data))
        if type(chunk) is dict:
            return chunk
        self._found.add("not_json")  # `null`, `"ping"`
        return {}

    def _lenient_json(self, data: bytes, is_whole: bool) -> Any:
        """Returns the value of data that is no JSON by the letter; an empty one for what can be passed over; None: it goes on.

        Raises Unavailable for what is to be JSON and is not, and _Done.
        """
        text = data.strip()
        if text.upper() == b"[DONE]":
            raise _Done
        if text[:1] not in (b"{", b"["):  # `: comment`, `ping`, nothing
            if text:
                self._found.add("not_json")
                self._keep_stray(text)
            return {}
        try:  # half of a surrogate pair, NaN, bytes that are no UTF-8: invalid JSON that some providers send
            value = lenient(text)
        except RecursionError:
            self._found.add("unstorable")
            return {}
        except ValueError:
            if self._at_end or self._first.reason is not None:  # cut off, perhaps behind the end of the answer
                self._found.add("not_json")
                return {}
            if is_whole:
                raise Unavailable("the provider sent a chunk that is not JSON") from None
            return None
        self._found.add("invalid_json")
        return value

    def _keep_stray(self, text: bytes) -> None:
        """Keeps words that may be an error's, as many as fit."""
        self._stray_bytes += len(text) + _STRAY_LINE_BYTES
        if self._stray_bytes <= _STRAY_BYTES_MAX and not text.startswith(b":"):
            self._stray.append(text)

    def _take_body(self, body: bytes, items: list[Item]) -> None:
        """Takes a whole body that had no events: JSON over several lines, a page, a text. Raises for all but a completion."""
        if has_too_many_values(body):
            raise Unavailable(f"the provider sent a body of more than {VALUES_MAX} values")
        self._found.add("not_an_event")
        value = json_or_text(body)
        if type(value) is dict and value.get("choices"):
            self._is_whole = True
            self.take_data(body, items, is_whole=True)
        elif type(value) is dict or type(value) is list:
            self._found.add("error_shape")
            raise_for_error(value)
        else:
            raise_for_page(value)

    def _take_without_choices(self, chunk: dict[str, Any]) -> None:
        """Takes a chunk of no choices: a usage, a ping, the provider's own fields. Raises for an error."""
        if chunk.get("choices"):
            self._found.add("choices")
        if is_error(chunk):
            self._found.add("error_shape")
            raise_for_error(chunk)
        status = chunk.get("base_resp")  # MiniMax
        if type(status) is dict and status.get("status_code"):
            self._found.add("error_shape")
            raise_for_error(status)
        if not chunk.get("usage"):
            self._note_nested_usage(chunk)

    def _raise_error_of(self, chunk: dict[str, Any], data: bytes, items: list[Item]) -> None:
        """Raises the error in a chunk, once its text has been taken."""
        choices = chunk.get("choices")
        for choice in choices[:CHOICES_MAX] if type(choices) is list else ():
            if type(choice) is dict:
                self._take_unusual({}, [choice], {**choice, "finish_reason": None, "error": None}, data, items)
        raise_for_error(chunk)

    # --- a choice

    def _take_text(self, content: str, items: list[Item]) -> None:
        """Takes text that is not ASCII; holds back the first half of a surrogate pair at its end."""
        if content[-1] > "\udbff" or content[-1] < "\ud800":
            items.append(clean(content))
            return
        text = self._whole_pairs(self._first, "content", content)
        if text:
            items.append(text)

    def _take_unusual(
        self, chunk: dict[str, Any], choices: list[Any], choice: dict[str, Any], data: bytes, items: list[Item]
    ) -> None:
        """Takes a choice that is more, or less, than a piece of plain text."""
        index = 0
        if choice.get("index"):
            index = shapes.INDEX(choice["index"], self._odd_at("index"))
            if index is shapes.LEFT_OUT:
                index = next(place for place, it in enumerate(choices) if it is choice)
        state = self._first if not index else self._further.setdefault(index, _Choice(self._found.add))
        sent = choice.get("delta")
        if not sent and choice.get("message"):
            sent = _numbered(choice["message"])
            self._is_whole = True
            self._found.add("whole_answer")
        elif not sent and choice.get("text"):
            sent = {"content": choice["text"]}
            self._found.add("whole_answer")
        delta = self._shaped(sent or {}, state)
        beside_delta: dict[str, Any] = {}
        if choice.get("logprobs"):
            logprobs = shapes.LOGPROBS(choice["logprobs"], self._odd_at("logprobs"))
            if logprobs is not shapes.LEFT_OUT:
                beside_delta["logprobs"] = logprobs
        if delta.get("content") and not beside_delta and not delta.keys() <= _BESIDE_TEXT:
            self._found.add("foreign_field")
            delta = {name: value for name, value in delta.items() if name in _BESIDE_TEXT}
        if index:
            beside_delta["index"] = index
        if choice.get("finish_reason"):
            is_first = not self._has_content and not items
            has_text = bool(delta.get("content"))
            beside_delta |= self._end(chunk, choice, state, has_text=has_text, is_first=is_first, index=index)
        elif choice.get("usage"):
            self._note_nested_usage(choice)
        if not beside_delta and len(delta) == 1 and "content" in delta:
            items.append(clean(delta["content"]))
        elif delta or "logprobs" in beside_delta or "finish_reason" in beside_delta:
            items.append(self._dump({"delta": delta, **beside_delta}, data))
        self._raise_if_failed(choice)

    def _end(
        self,
        chunk: dict[str, Any],
        choice: dict[str, Any],
        state: _Choice,
        *,
        has_text: bool,
        is_first: bool,
        index: int = 0,
    ) -> dict[str, Any]:
        """Notes the finish_reason of a choice. Returns what an item says of it: of the first choice nothing, `done` does.

        `has_text`: it came with text; `is_first`: nothing came before.
        """
        word = shapes.word(choice["finish_reason"], self._odd_at("finish_reason"))
        reason = finish_reason_of(word)
        if not is_known(word):
            self._found.add("finish_reason")
        if reason is None or reason is FinishReason.ERROR:
            return {}
        before = state.reason
        state.reason = later_of(before, reason)
        if state.reason is reason:
            state.word = word
        elif reason is not before:
            self._found.add("finish_again")
        if not chunk.get("usage"):
            self._note_nested_usage(choice)
            self._note_nested_usage(chunk)
        self._set_grace(is_sure=not (has_text and (is_first or before is not None)))
        if not index:
            self._note("provider", chunk, _ENVELOPE)
            self._note("choice", choice, _CHOICE)
            return {}
        if before is state.reason:
            return {}
        own = {key: value for key, value in choice.items() if key not in _CHOICE and value is not None}
        has_calls = len(state.calls) > 0
        shown = str(end_of(state.reason, has_calls=has_calls, is_done=True, has_content=True))
        if word != shown:
            own = {"native_finish_reason": word, **own}
        return {**fitting(own, self._odd_at("unstorable")), "index": index, "finish_reason": shown}

    def _raise_if_failed(self, choice: dict[str, Any]) -> None:
        """Raises for a choice that ends in an error."""
        if choice.get("error"):
            self._found.add("error_shape")
            raise_for_error(choice)
        if choice.get("finish_reason"):
            word = shapes.word(choice["finish_reason"], lambda: None)
            if finish_reason_of(word) is FinishReason.ERROR:
                raise_for_error({"message": f"its finish_reason is {word}"})

    def _set_grace(self, *, is_sure: bool) -> None:
        """Sets how long a silence may last. `is_sure` is false where the provider seems to put a finish_reason into every chunk."""
        states = [self._first, *self._further.values()]
        if any(state.reason is None for state in states):
            return
        is_sure = (is_sure or self.grace_seconds == GRACE_SECONDS) and len(states) >= self._choices_requested
        self.grace_seconds = GRACE_SECONDS if is_sure else UNSURE_GRACE_SECONDS

    # --- a delta

    def _shaped(self, delta: Any, state: _Choice) -> dict[str, Any]:
        """Returns a delta without its empty fields, each of the others in its documented shape."""
        if type(delta) is not dict:
            self._found.add("delta")
            return {}
        clean: dict[str, Any] = {}
        for name, value in delta.items():
            if name == "role" or value in (None, "", []):
                continue
            if name in _CALL_FIELDS:
                self._take_calls(name, value, clean, state)
                continue
            if name == "content" and type(value) is not str:
                self._take_parts(value, clean)
                continue
            shape = shapes.DELTA.get(name)
            if shape is not None:
                value = shape(value, self._odd_at(name))
                if value is shapes.LEFT_OUT or value in ("", []):
                    continue
            clean[name] = value
        for name, value in list(clean.items()):
            if type(value) is str and (self._has_halves or not value.isascii()):
                clean[name] = self._whole_pairs(state, name, value)
                if not clean[name]:
                    del clean[name]
        return clean

    def _take_calls(self, name: str, value: Any, clean: dict[str, Any], state: _Choice) -> None:
        """Takes the pieces of tool calls; the `function_call` of OpenAI's earlier API is one."""
        if name == "function_call":
            shaped = shapes.function(value, self._odd_at(name))
            pieces = [] if shaped is shapes.LEFT_OUT else [{"index": 0, "function": shaped}]
            if pieces:
                self._found.add("function_call")
        else:
            shaped = shapes.calls(value, self._odd_at(name))
            pieces = [] if shaped is shapes.LEFT_OUT else shaped
        for place, piece in enumerate(pieces):
            for field in ("function", "custom"):
                body = piece.get(field) or {}
                for text in ("arguments", "input"):
                    if type(body.get(text)) is str and (self._has_halves or not body[text].isascii()):
                        body[text] = self._whole_pairs(state, f"{piece.get('index', place)}.{text}", body[text])
        gathered = state.calls.take(pieces)
        if gathered:
            clean["tool_calls"] = [*clean.get("tool_calls", ()), *gathered]

    def _take_parts(self, value: Any, clean: dict[str, Any]) -> None:
        """Takes a content that is no text: a list of parts, or a number."""
        if type(value) not in (list, dict):
            value = shapes.DELTA["content"](value, self._odd_at("content"))
            value = "" if value is shapes.LEFT_OUT else value
        else:
            self._found.add("content_parts")
        for name, piece in shapes.texts_of_parts(value, self._odd_at("content")).items():
            if piece:
                clean[name] = clean.get(name, type(piece)()) + piece

    def _whole_pairs(self, state: _Choice, name: str, text: str) -> str:
        """Returns a text with what was held back before it; holds back the first half of a surrogate pair at its end."""
        if self._has_halves:
            text = state.halves.pop(name, "") + text
            self._has_halves = any(it.halves for it in (self._first, *self._further.values()))
        if text and _HIGH_SURROGATES[0] <= text[-1] <= _HIGH_SURROGATES[1]:
            state.halves[name], text = text[-1], text[:-1]
            self._has_halves = True
            self._found.add("split_character")
        return clean(text)

    def _flush_halves(self, items: list[Item]) -> None:
        """Appends what has lost its second half: a replacement character."""
        if self._first.halves.pop("content", None):
            items.append(clean("\ud83d"))

    # --- what stands beside the answer

    def _note_usage(self, usage: Any) -> None:
        """Keeps the newest usage, unless it is of another shape or all zero and there is one."""
        has_counts = type(usage) is dict and any(type(it) is int and it for it in usage.values())
        if type(self._usage) is not dict or has_counts:
            self._usage = usage

    def _note_nested_usage(self, sent: dict[str, Any]) -> None:
        """Finds a usage that stands in a choice, or in a field of the provider's own such as `x_groq`."""
        for name, value in sent.items():
            usage = (
                value if name == "usage" else value.get("usage") if name[:2] == "x_" and type(value) is dict else None
            )
            if type(usage) is dict and usage:
                self._found.add("usage_place")
                self._note_usage(usage)

    def _note(self, name: str, sent: dict[str, Any], known: frozenset[str]) -> None:
        """Keeps, under this name, the fields that are not known: they have no place elsewhere in the log."""
        noted = self.about.get(name, {})
        fields = {key: value for key, value in sent.items() if key not in known and value not in (None, "", [], {})}
        if any(noted.get(key) != value for key, value in fields.items()):
            for key in fields.keys() & shapes.CHUNK.keys():
                if shapes.CHUNK[key](fields[key], self._odd_at(key)) is shapes.LEFT_OUT:
                    del fields[key]
            noted = fitting(noted | fields, self._odd_at("unstorable"))
        self.about[name] = noted

    def _odd_at(self, kind: str) -> Callable[[], None]:
        return partial(self._found.add, kind)

    def _report(self) -> None:
        """Reports each kind once per packet: a list may have a hundred thousand odd elements."""
        for kind in sorted(self._found):
            self._odd(kind)
        self._found.clear()

    def _dump(self, value: dict[str, Any], payload: bytes) -> bytes:
        """Returns an item's JSON: of bounded depth, and without anything that JSON libraries cannot read back."""
        if payload and payload.count(b"{") + payload.count(b"[") <= LEVELS_MAX:  # it cannot be nested deeper than that
            try:
                return orjson.dumps(value)
            except TypeError:
                pass  # half of a surrogate pair, or a number of more than 64 bits
        return orjson.dumps(storable(value, self._odd_at("unstorable")))


class _Done(Exception):
    """`[DONE]` was read."""


def _numbered(message: Any) -> Any:
    """Returns a message whose calls have an index, as those of a delta have."""
    calls = message.get("tool_calls") if type(message) is dict else None
    if type(calls) is not list:
        return message
    numbered = [{"index": place, **call} if type(call) is dict else call for place, call in enumerate(calls)]
    return {**message, "tool_calls": numbered}

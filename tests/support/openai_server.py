"""A small OpenAI-compatible server: each request chooses its answer, pace and faults by its body's `script`.

`python -m tests.support.openai_server --port 9000`, or `async with OpenAIServer() as server` with `server.url`.

POST /v1/chat/completions (streaming or not), GET /v1/models, GET /stats: {requests, running, tokens, aborted}, which count
what was produced. Its own HTTP can break the protocol, and sees a closed connection at once.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.support.http_server import Closed, HttpServer, Request, head, response

_WORDS = "river stone light morning letter garden window paper harbour signal bridge winter orchard".split()
_AT_ONCE_MAX = 64


@dataclass(frozen=True, slots=True)
class Script:
    """The fields of `script`. Faults occur in the first `times` requests with the same `key`; without `times`, in all."""

    tokens: int = 20
    text: list[str] | None = None
    """The answer's tokens; None: random words."""
    token_characters: int = 0
    """The minimum length of a random token."""
    tokens_per_second: float = 0
    """0: without pauses."""
    finish_reason: str = "stop"
    reasoning: list[str] = dataclasses.field(default_factory=list)
    """Pieces of `reasoning_content` before the first token."""
    tool_calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Complete calls in OpenAI's form; they are streamed in pieces after the text."""
    logprobs: bool = False
    refusal: list[str] = dataclasses.field(default_factory=list)
    """The pieces of a refusal, which replaces the text."""
    further: list[list[str]] = dataclasses.field(default_factory=list)
    """The tokens of choices 1, 2, ..., in chunks of their own, as OpenAI sends them. Without: all choices are equal."""
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Additional fields of every chunk: system_fingerprint, service_tier."""
    last: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Additional fields of the choice with the finish_reason, as vLLM and Azure send them."""

    key: str = ""
    times: int | None = None
    fail_status: int | None = None
    retry_after: float | None = None
    error: dict[str, Any] | None = None
    """The error object of `fail_status` and `error_chunk_after`."""
    break_after: int | None = None
    """Closes the connection in mid-answer after so many tokens."""
    error_chunk_after: int | None = None
    """Sends an error chunk after so many tokens, in a response that began with 200."""
    stall_after: int | None = None
    no_finish: bool = False
    """Ends without a finish_reason and without [DONE]."""


_NO_FAULT: dict[str, Any] = {
    one.name: one.default
    for one in dataclasses.fields(Script)
    if one.name in ("fail_status", "break_after", "error_chunk_after", "stall_after", "no_finish")
}


class OpenAIServer(HttpServer):
    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host=host, port=port)
        self._struck: Counter[str] = Counter()
        self.requests = self.running = self.tokens = self.aborted = 0
        self.bodies: list[dict[str, Any]] = []
        """The newest request bodies."""
        self.traceparents: list[str | None] = []
        """The header of this name of the newest requests."""

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.traceparents = [*self.traceparents[-99:], request.headers.get("traceparent")]
        route = (request.method, request.path.partition("?")[0])
        if route == ("GET", "/stats"):
            _answer(writer, 200, {name: getattr(self, name) for name in ("requests", "running", "tokens", "aborted")})
        elif route == ("GET", "/v1/models"):
            model = {"id": "scripted", "object": "model", "created": 0, "owned_by": "tests"}
            _answer(writer, 200, {"object": "list", "data": [model]})
        elif route == ("POST", "/v1/chat/completions"):
            await self._complete(json.loads(request.body), reader, writer)
        else:
            _answer(writer, 404, {"error": {"message": f"no such path: {route[1]}", "type": "invalid_request_error"}})

    async def _complete(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        self.bodies = [*self.bodies[-99:], body]
        script = self._script(body)
        if script.fail_status is not None:
            headers = {} if script.retry_after is None else {"retry-after": f"{script.retry_after:g}"}
            error = script.error or {"message": "as the script says", "type": "scripted"}
            _answer(writer, script.fail_status, {"error": error}, headers)
            return
        self.running += 1
        answering = asyncio.ensure_future(self._stream(f"chatcmpl-{self.requests}", body, script, writer))
        leaving = asyncio.ensure_future(reader.read(1))  # our clients do not pipeline: any read is the end
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ConnectionResetError
            leaving.cancel()  # before the last chunk: the next request's first byte must stay unread
            last = answering.result()
            writer.write(last)
        except OSError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _script(self, body: dict[str, Any]) -> Script:
        """Returns the request's script, without faults that have occurred often enough."""
        script = Script(**(body.get("script") or {}))
        if script.times is None:
            return script
        key = script.key or json.dumps(body["script"], sort_keys=True)
        self._struck[key] += 1
        return script if self._struck[key] <= script.times else dataclasses.replace(script, **_NO_FAULT)

    async def _stream(
        self, answer_id: str, body: dict[str, Any], script: Script, writer: asyncio.StreamWriter
    ) -> bytes:
        """Writes the answer without its last bytes, and returns these."""
        about = {"id": answer_id, "created": int(time.time()), "model": body.get("model", "scripted"), **script.about}
        if not body.get("stream"):
            choices = _merged([chunk async for chunk in self._chunks(body, script)])
            whole = {**about, "object": "chat.completion", "choices": choices, "usage": self._usage(body, choices)}
            return _response(200, whole)
        writer.write(head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}))
        spoken = 0
        async for chunk in self._chunks(body, script):
            event = _event({**about, "object": "chat.completion.chunk", **chunk})
            if writer.is_closing():
                raise ConnectionResetError  # uvloop would refuse the write with a RuntimeError
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            spoken += bool(chunk.get("choices") and not chunk["choices"][0].get("finish_reason"))
            await writer.drain()
        last = b"" if script.no_finish else b"data: [DONE]\n\n"
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {**about, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(body, spoken - 1)}
            last = _event(usage) + last
        return (b"%x\r\n%b\r\n" % (len(last), last) if last else b"") + b"0\r\n\r\n"

    async def _chunks(self, body: dict[str, Any], script: Script) -> AsyncIterator[dict[str, Any]]:
        indices = range(body.get("n") or 1)
        yield {"choices": [_choice(index, {"role": "assistant", "content": ""}) for index in indices]}
        if script.further:
            for index, tokens in enumerate(script.further, start=1):
                for token in tokens:
                    yield {"choices": [_choice(index, {"content": token})]}
                yield {"choices": [{**_choice(index, {}), "finish_reason": "stop"}]}
            indices = range(1)
        began = time.monotonic()
        for count, delta in enumerate(_deltas(body, script)):
            if count == script.break_after:
                raise Closed
            if count == script.error_chunk_after:
                yield {"error": script.error or {"message": "as the script says", "type": "server_error"}}
                return
            if count == script.stall_after:
                await asyncio.Event().wait()
            if "finish_reason" in delta:
                if not script.no_finish:
                    yield {"choices": [{**_choice(index, {}), **delta, **script.last} for index in indices]}
                return
            if script.tokens_per_second:
                await asyncio.sleep(max(0.0, began + (count + 1) / script.tokens_per_second - time.monotonic()))
            elif count % _AT_ONCE_MAX == 0:
                await asyncio.sleep(0)
            self.tokens += 1
            logprobs = {"content": [{"token": delta.get("content", ""), "logprob": -0.5}]} if script.logprobs else None
            yield {"choices": [_choice(index, delta, logprobs) for index in indices]}

    @staticmethod
    def _usage(body: dict[str, Any], answer: int | list[dict[str, Any]]) -> dict[str, int]:
        """Returns the usage. A token is a chunk of a stream, or a word of a whole answer."""
        words = 0 if isinstance(answer, int) else sum(len(choice["message"]["content"].split()) for choice in answer)
        completion = answer if isinstance(answer, int) else words
        prompt = sum(len(str(message.get("content", "")).split()) for message in body["messages"])
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _deltas(body: dict[str, Any], script: Script) -> Iterator[dict[str, Any]]:
    """Yields the deltas of an answer; the last one is the finish_reason."""
    for piece in script.reasoning:
        yield {"reasoning_content": piece}
    for piece in script.refusal:
        yield {"refusal": piece}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    for count, token in enumerate(_tokens(body, script)):
        if count == limit:
            yield {"finish_reason": "length"}
            return
        yield {"content": token}
    yield from _call_deltas(script.tool_calls)
    yield {"finish_reason": "tool_calls" if script.tool_calls else script.finish_reason}


def _tokens(body: dict[str, Any], script: Script) -> Iterator[str]:
    """Yields the tokens for a prompt, without those that an assistant message at its end has already."""
    if script.refusal:
        return
    messages, partial = list(body["messages"]), ""
    if messages[-1]["role"] == "assistant":
        partial = messages.pop()["content"]
    dice = random.Random(hashlib.sha256(json.dumps(messages).encode()).digest())
    made_up = (
        (("" if number == 0 else " ") + dice.choice(_WORDS)).ljust(script.token_characters, ".")
        for number in range(script.tokens)
    )
    for token in made_up if script.text is None else script.text:
        if partial and partial.startswith(token):
            partial = partial.removeprefix(token)
        else:
            yield token


def _call_deltas(calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        opening = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield {"tool_calls": [opening]}
        for start in range(0, len(arguments), 8):
            yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[start : start + 8]}}]}


def _choice(index: int, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _merged(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the choices of a whole answer, merged from the chunks of a stream."""
    merged: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk.get("choices", ())):
        empty = {"index": choice["index"], "message": {"role": "assistant", "content": ""}, "finish_reason": None}
        whole = merged.setdefault(choice["index"], empty)
        whole["message"]["content"] += choice["delta"].get("content") or ""
        if "reasoning_content" in choice["delta"]:
            reasoning = whole["message"].get("reasoning_content", "")
            whole["message"]["reasoning_content"] = reasoning + choice["delta"]["reasoning_content"]
        for piece in choice["delta"].get("tool_calls", ()):
            calls = whole["message"].setdefault("tool_calls", [])
            if "id" in piece:
                calls.append({key: value for key, value in piece.items() if key != "index"})
            else:
                calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
        whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
    return list(merged.values())


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(chunk, separators=(",", ":")).encode()


def _response(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
    return response(status, "application/json", json.dumps(body).encode(), headers)


def _answer(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    writer.write(_response(status, body, headers))


async def _serve(host: str, port: int) -> None:
    async with OpenAIServer(host=host, port=port) as server:
        print(server.url, file=sys.stderr, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server, for tests.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    arguments = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.host, arguments.port))


if __name__ == "__main__":
    main()

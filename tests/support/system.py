"""All of Midstream as real processes: Redis, gateways and workers, to be read from, killed, frozen and restarted.

    async with System(gateways=2, workers=2, settings={"lease_seconds": 1}) as system:
        stream_id = await system.create("a question", simulate={"tokens": 20})
        reader = system.follow(stream_id, gateway=1)
        await reader.until_end()

On exit all processes are ended. No process may have logged a traceback, no key may be without an expiry, and the gateways
must have unsubscribed from what their readers followed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from shared.keys import live_channel, log_key
from shared.settings import described
from shared.sse import Decoder, Message
from tests.support import fork_server
from tests.support.fork_server import Fork
from tests.support.left_in_redis import keys_without_expiry
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.redis_server import Kind, RedisServer, binary_of
from tests.support.waiting import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS_MAX = 30.0
_END_SECONDS_MAX = 10.0
_SHOWN_CHARACTERS = 3000
_HOSTS = "x,here,stress"
"""The values of `Host` in requests that tests write by hand."""
_TOKEN_KEYS = "test-key-0123456789abcdef-0123456789abcdef"
_COMPLAINT = re.compile(r"Traceback \(most|was never (awaited|retrieved)|was destroyed|Exception in ASGI")
"""Text in a log that shows an unhandled error."""


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """Returns this process's environment with these settings, without others of ours, and without traces."""
    variables = {setting.name: setting.env for setting in described()}
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MIDSTREAM_", "OPENAI_", "OTEL_"))
    }
    return {**inherited, **{variables[name]: str(value) for name, value in settings.items()}}


def settings_with(api_key: str) -> dict[str, object]:
    """Returns a gateway's settings with authentication on, which know this API key."""
    scopes = "create,read,cancel,write"
    return {"auth": "required", "token_keys": _TOKEN_KEYS, "api_keys": f"tests {scopes} {api_key}"}


class Process:
    """One `python -m gateway` or `python -m producer`, which can be restarted."""

    def __init__(
        self,
        module: str,
        settings: Mapping[str, object],
        log: Path,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        checkout: Path | None = None,
        anew: bool = False,
    ) -> None:
        """`checkout`: another release's, with its own `.venv`; None: this one. `anew`: start Python, instead of a fork."""
        self.module = module
        self.settings = dict(settings)
        self._environment = dict(environment or {})
        self._log = log
        self._folder = checkout or _ROOT
        self._python = sys.executable if checkout is None else str(checkout / ".venv/bin/python")
        self._arguments = arguments
        self._anew = anew or checkout is not None or any(name.startswith("PYTHON") for name in self._environment)
        self._popen: subprocess.Popen[bytes] | Fork | None = None
        self._started_at = self._checked_to = 0

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def runs(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        assert not self.runs, "it runs already"
        self._started_at = self._log.stat().st_size if self._log.exists() else 0
        environment = {**environment_of(self.settings), **self._environment}
        server = None if self._anew else fork_server.server()
        if server is not None:
            self._popen = server.start(self.module, self._arguments, environment, self._log)
            return
        with self._log.open("ab") as output:
            self._popen = subprocess.Popen(
                [self._python, "-m", self.module, *self._arguments],
                cwd=self._folder,
                env=environment,
                stdout=output,
                stderr=output,
            )

    def send(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Ends the process by SIGKILL, also a frozen one."""
        assert self._popen is not None
        self._popen.kill()
        self._popen.wait(_END_SECONDS_MAX)

    async def exit_code(self, *, within_seconds: float = _END_SECONDS_MAX) -> int:
        """Waits for the process's end, and returns its exit code. AssertionError if it does not end in time."""
        assert self._popen is not None
        try:
            return await asyncio.to_thread(self._popen.wait, within_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.module} still runs {within_seconds:g} s later\n{self.tail()}") from None

    def logged(self) -> str:
        """Returns what the process has logged since its last start."""
        return self._log.read_bytes()[self._started_at :].decode()

    def tail(self) -> str:
        """Returns the end of the process's log, to be shown with a failure."""
        text = self._log.read_text() if self._log.exists() else ""
        return f"--- {self._log.stem}\n{text[-_SHOWN_CHARACTERS:]}"

    def assert_no_complaints(self) -> None:
        """Checks that the process has logged no traceback since the last call."""
        logged = self._log.read_bytes()[self._checked_to :] if self._log.exists() else b""
        self._checked_to += len(logged)
        text = logged.decode()
        found = _COMPLAINT.search(text)
        if found is not None:
            raise AssertionError(f"{self._log.stem} logged a complaint:\n{text[max(0, found.start() - 500) :]}")


class Reader:
    """One connection that follows a stream, with httpx2, until it ends or `leave` is called. It does not reconnect."""

    def __init__(self, http: httpx2.AsyncClient, url: str, *, after: str = "") -> None:
        self._http = http
        self._url = url
        self._after = after
        self._decoder = Decoder()
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = bytearray()
        self.messages: list[Message] = []
        self.tokens: list[str] = []
        """The text of every token event, in the order in which they came."""
        self.error: Exception | None = None
        """Why the body was cut off; None before its end, and if it ended properly (RFC 9112)."""
        self._task = asyncio.create_task(self._read())

    @property
    def ended(self) -> bool:
        return self._task.done()

    @property
    def last_id(self) -> str:
        """The id that an EventSource would send as Last-Event-ID."""
        return self._decoder.last_id or self._after

    @property
    def retry_milliseconds(self) -> int | None:
        return self._decoder.retry_milliseconds

    def named(self, event: str) -> list[Any]:
        """Returns the data of the events of this name."""
        return [json.loads(message.data) for message in self.messages if message.event == event]

    async def until_tokens(self, count: int, *, within_seconds: float = 15.0) -> None:
        def enough() -> bool:
            assert not self.ended or len(self.tokens) >= count, f"ended after {len(self.tokens)} tokens: {self!r}"
            return len(self.tokens) >= count

        await wait_until(enough, within_seconds=within_seconds, what=f"{count} tokens")

    async def until_event(self, event: str, *, within_seconds: float = 15.0) -> Any:
        """Waits for the first event of this name, and returns its data."""
        await wait_until(
            lambda: self.named(event), within_seconds=within_seconds, what=f"the event {event!r}: {self!r}"
        )
        return self.named(event)[0]

    async def until_over(self, *, within_seconds: float = 30.0) -> None:
        """Waits until the response has ended or was cut off."""
        await wait_until(lambda: self.ended, within_seconds=within_seconds, what=f"the end of the response: {self!r}")

    async def until_end(self, *, within_seconds: float = 30.0) -> Self:
        """Waits until the response has ended properly. AssertionError if it was cut off."""
        await self.until_over(within_seconds=within_seconds)
        if self.error is not None:
            raise AssertionError(f"the response broke off: {self!r}") from self.error
        return self

    async def leave(self) -> None:
        """Closes the connection."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        headers = {"last-event-id": self._after} if self._after else {}
        try:
            async with self._http.stream("GET", self._url, headers=headers) as response:
                self.status, self.headers = response.status_code, response.headers
                async for part in response.aiter_bytes():
                    self.body += part
                    for message in self._decoder.feed(part):
                        self.messages.append(message)
                        if message.event == "message" and '"token"' in message.data:
                            self.tokens.append(json.loads(message.data)["token"])
        except httpx2.HTTPError as error:
            self.error = error

    def __repr__(self) -> str:
        return f"Reader({self._url} after {self._after!r}: {self.status}, {len(self.body)} bytes, {self.messages[-3:]}, {self.error!r})"


@dataclass
class Answer:
    """The answer that a client has in the end which follows docs/reference/http.md."""

    items: list[tuple[str, Any]] = field(default_factory=list)
    """The increments that stand: `token` or `delta` and its value, or the name and the data of an own event."""
    started: dict[str, Any] | None = None
    restarted: list[dict[str, Any]] = field(default_factory=list)
    end: str = ""
    """The name of the terminal event."""
    end_data: Any = None

    @property
    def tokens(self) -> list[str]:
        return [value for kind, value in self.items if kind == "token"]

    @property
    def deltas(self) -> list[Any]:
        return [value for kind, value in self.items if kind == "delta"]

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def answer_of(*connections: Iterable[Message]) -> Answer:
    """Merges the events that one reader got over its connections. AssertionError for a gap, a repetition or a wrong order."""
    answer, attempt, offset = Answer(), 0, 0
    for message in (message for connection in connections for message in connection):
        assert not answer.end, f"{message} came after {answer.end}"
        assert message.event != "gap", f"events are missing: {message}"
        if message.event == "live":
            continue
        data, at = json.loads(message.data), f"{message}, after {attempt}-{offset}"
        if message.event in ("started", "restarted"):
            assert message.id == f"{attempt + 1}-0" or message.event == "restarted", at
            attempt, offset = data["attempt"], data.get("base", 0)
            assert message.id == f"{attempt}-0", at
            if message.event == "started":
                answer.started = data
            else:
                answer.restarted.append(data)
                assert offset <= len(answer.items), at
                del answer.items[offset:]
        elif message.event == "message":
            offset += 1
            assert message.id == f"{attempt}-{offset}", at
            answer.items.append(("token", data["token"]) if "token" in data else ("delta", data["delta"]))
        elif message.event not in ("done", "failed", "cancelled"):
            offset += 1
            assert message.id == f"{attempt}-{offset}", at
            answer.items.append((message.event, data))
        else:
            of, _, number = message.id.partition("-")  # from outside, a later attempt's 0 ends it
            assert message.id == f"{attempt}-{offset + 1}" or (int(of) > attempt and number == "0"), at
            answer.end, answer.end_data = message.event, data
    return answer


class System:
    """Redis, gateways and workers, as processes. These log in as the users that are shipped for Redis (deploy/redis/users.acl).

    `tcp` and `durable` are as in RedisServer; `redis` is one that has not been started. `settings`, named as in
    shared.settings, are for all processes, `gateway_settings` and `worker_settings` for one kind. `environment` are more
    variables for all processes. `gateway_module` is what `python -m` runs as a gateway. `api_key` turns authentication on: this
    key may create, read, cancel and write, and `http` sends it.
    """

    def __init__(
        self,
        *,
        gateways: int = 1,
        workers: int = 1,
        settings: Mapping[str, object] | None = None,
        gateway_settings: Mapping[str, object] | None = None,
        worker_settings: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        tcp: bool = False,
        durable: bool = False,
        redis: RedisServer | RedisCluster | RedisWithSentinels | None = None,
        gateway_module: str = "gateway",
        api_key: str = "",
    ) -> None:
        self._environment = environment
        self.api_key = api_key
        self._directory = Path(tempfile.mkdtemp(prefix="midstream-system-"))
        kind: Kind = "redis" if binary_of("redis") else "valkey"
        self.redis: Any = redis or RedisServer(kind, tcp=tcp, durable=durable)
        common = {"hosts": _HOSTS}
        gateway = {**common, "redis_url": self._redis_url("midstream-gateway"), "port": 0, **(settings or {})}
        if api_key:
            gateway |= settings_with(api_key)
        worker = {**common, "redis_url": self._redis_url("midstream-worker"), **(settings or {})}
        self.gateways = [
            self._process(gateway_module, index, {**gateway, **(gateway_settings or {})}) for index in range(gateways)
        ]
        self.workers = [
            self._process("producer", index, {**worker, **(worker_settings or {})}) for index in range(workers)
        ]
        self._readers: list[Reader] = []

    async def __aenter__(self) -> Self:
        self.http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else None,
            timeout=30.0,
            limits=httpx2.Limits(max_connections=None),
            verify=False,
            trust_env=False,
        )
        self.commands: Any = None
        try:
            await asyncio.to_thread(self.redis.start)
            self.commands = self.redis.client()
            for process in (*self.gateways, *self.workers):
                process.start()
            for index in range(len(self.gateways)):
                await self._until_gateway_is_up(index)
            for index in range(len(self.workers)):
                await self._until_worker_is_up(index)
        except BaseException as error:
            error.add_note(self.tails())
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.tails())
        try:
            if error is None:
                await self._assert_nothing_left()
        finally:
            await self._close()

    # --- processes

    def _redis_url(self, user: str) -> str:
        return str(self.redis.url_of(user))

    def gateway_port(self, index: int = 0) -> int:
        return int(str(self.gateways[index].settings["port"]))

    @property
    def gateway_ports(self) -> list[int]:
        return [self.gateway_port(index) for index in range(len(self.gateways))]

    def gateway_url(self, index: int = 0) -> str:
        return f"http://127.0.0.1:{self.gateway_port(index)}"

    async def start_gateway(self, index: int) -> None:
        """Restarts a gateway that has ended, on the port that it had."""
        self.gateways[index].start()
        await self._until_gateway_is_up(index)

    async def start_worker(self, index: int) -> None:
        self.workers[index].start()
        await self._until_worker_is_up(index)

    async def worker_of(self, stream_id: str) -> Process:
        """Returns the worker process of the stream's newest attempt."""
        entries = await self.commands.xrange(log_key(stream_id))
        attempts = [fields.get(b"started") or fields.get(b"restarted") for _, fields in entries]
        name = json.loads([attempt for attempt in attempts if attempt][-1])["worker"]
        (worker,) = [worker for worker in self.workers if worker.runs and worker.pid == int(name.split("-")[-2])]
        return worker

    def assert_no_complaints(self) -> None:
        """Checks that no process has logged a traceback since the last call."""
        for process in (*self.gateways, *self.workers):
            process.assert_no_complaints()

    def tails(self) -> str:
        return "\n".join(process.tail() for process in (*self.gateways, *self.workers))

    # --- requests

    async def create(
        self,
        prompt: str = "Tell me a story.",
        *,
        gateway: int = 0,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> str:
        """Creates a stream, and returns its id."""
        response = await self.http.post(
            f"{self.gateway_url(gateway)}/v1/streams",
            json={"messages": [{"role": "user", "content": prompt}], **body},
            headers=headers,
        )
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def events_url(self, stream_id: str, *, gateway: int = 0) -> str:
        return f"{self.gateway_url(gateway)}/v1/streams/{stream_id}/events"

    def follow(self, stream_id: str, *, gateway: int = 0, after: str = "", query: str = "") -> Reader:
        """Returns a new reader of the stream. It leaves when the system ends at the latest."""
        reader = Reader(self.http, self.events_url(stream_id, gateway=gateway) + query, after=after)
        self._readers.append(reader)
        return reader

    async def state(self, stream_id: str, *, gateway: int = 0, wait_seconds: float | None = None) -> dict[str, Any]:
        query = "" if wait_seconds is None else f"?wait={wait_seconds:g}"
        response = await self.http.get(f"{self.gateway_url(gateway)}/v1/streams/{stream_id}{query}")
        assert response.status_code == 200, response.text
        state: dict[str, Any] = response.json()
        return state

    async def until_status(self, stream_id: str, *statuses: str, within_seconds: float = 15.0) -> dict[str, Any]:
        """Waits until the stream has one of these statuses, and returns its state."""

        async def has_it() -> bool:
            return (await self.state(stream_id))["status"] in statuses

        await wait_until(has_it, within_seconds=within_seconds, what=f"{stream_id} is {statuses}")
        return await self.state(stream_id)

    async def metric(self, name: str, *, gateway: int = 0) -> float:
        """Returns the value of a gateway's counter or gauge, summed over its labels."""
        text = (await self.http.get(f"{self.gateway_url(gateway)}/metrics")).text
        values = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert values, f"there is no metric {name}"
        return sum(map(float, values))

    async def logs(self) -> list[bytes]:
        """Returns the keys of all streams' logs."""
        return [key async for key in self.commands.scan_iter(match="midstream:{*}:log")]

    def assert_keys_expire(self) -> None:
        """Checks that all our keys have an expiry, unless the test has frozen or ended Redis."""
        if self.redis.runs:
            immortal = [key for one in self.redis.servers() for key in keys_without_expiry(one, "midstream:*")]
            assert not immortal, f"keys that never expire: {immortal}"

    # --- helpers

    def _process(self, module: str, index: int, settings: Mapping[str, object]) -> Process:
        log = self._directory / f"{module}-{index}.log"
        return Process(module, settings, log, environment=self._environment)

    async def _until_gateway_is_up(self, index: int) -> None:
        gateway = self.gateways[index]

        async def ready() -> bool:
            assert gateway.runs, f"the gateway ended:\n{gateway.tail()}"
            up = re.search(r"gateway is up: http://127\.0\.0\.1:(\d+)", gateway.logged())
            if up is None:
                return False
            gateway.settings["port"] = int(up[1])  # a restart has the same port
            with suppress(httpx2.TransportError):
                # 404: with authentication its health is at a port of its own, which opens before this one.
                return (await self.http.get(f"{self.gateway_url(index)}/readyz")).status_code in (200, 404)
            return False

        await wait_until(ready, within_seconds=_START_SECONDS_MAX, what=f"gateway {index} is ready")

    async def _until_worker_is_up(self, index: int) -> None:
        worker = self.workers[index]

        def up() -> bool:
            assert worker.runs, f"the worker ended:\n{worker.tail()}"
            return " is up: " in worker.logged()

        await wait_until(up, within_seconds=_START_SECONDS_MAX, what=f"worker {index} is up")

    async def _assert_nothing_left(self) -> None:
        self.assert_no_complaints()
        await asyncio.to_thread(self.assert_keys_expire)
        for reader in self._readers:
            await reader.leave()
        if self.redis.runs and all(gateway.runs for gateway in self.gateways):
            try:
                await wait_until(
                    self._nothing_is_followed, what="the gateways have unsubscribed when all readers had left"
                )
            except AssertionError as error:
                raise AssertionError(f"{error}: {await self._followed()}") from None

    async def _nothing_is_followed(self) -> bool:
        return not await self._followed()

    async def _followed(self) -> list[bytes]:
        """Returns the channels that a gateway subscribes to."""
        channels: list[bytes] = []
        for client in self.redis.clients():
            channels += await client.execute_command("PUBSUB", "SHARDCHANNELS", live_channel("*"))
            await client.aclose()
        return channels

    async def _close(self) -> None:
        for reader in self._readers:
            await reader.leave()
        await self.http.aclose()
        if self.commands is not None:
            await self.commands.aclose()
        for process in (*self.gateways, *self.workers):
            if process.runs:
                process.kill()
        self.redis.close()
        shutil.rmtree(self._directory, ignore_errors=True)

"""clients/js for tests: where it is, a site that serves it to browsers, and readers that use it in Node and in Firefox.

async with Site() as site:
    async with firefox(site.reader_url("firefox")):
        await wait_until(lambda: "firefox" in site.waiting)
        site.urls["firefox"] = stream_url
        await wait_until(lambda: site.reports.get("firefox", {}).get("ended"))
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_server import HttpServer, Request, response
from tests.support.needs import needs
from tests.support.npm import Node

_ROOT = Path(__file__).resolve().parents[2]
CLIENT = _ROOT / "clients/js/midstream.js"
EXAMPLES = sorted(path for path in _ROOT.glob("examples/*/*") if path.suffix in (".html", ".js"))
SCRIPTS = _ROOT / "tests/e2e/javascript"

_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_EXAMPLE_GATEWAY = b"http://127.0.0.1:8000"
_SCRIPT_SECONDS_MAX = 60.0
_FIREFOX_END_SECONDS_MAX = 10.0
_FIREFOX_PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "captivedetect.canonicalURL": "",
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}
"""A browser that calls nobody but the test's servers."""


class Site(HttpServer):
    """Serves the files of the repository, with the examples' gateway replaced, and collects what pages report.

    It is another origin than the gateway, as an application's own pages are.
    """

    def __init__(self, gateway_url: str) -> None:
        super().__init__()
        self._gateway_url = gateway_url
        self.reports: dict[str, dict[str, Any]] = {}
        """The newest report of each reader: `events`, and at the end `ended` or `error`."""
        self.urls: dict[str, str] = {}
        """What each reader is to follow. It asks until its name is here."""
        self.waiting: set[str] = set()
        """The readers that have asked."""

    def reader_url(self, name: str, *, query: str = "") -> str:
        """Returns the page that follows a stream, and reports under this name."""
        return f"{self.origin}/tests/e2e/javascript/reader.html?name={name}{query}"

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = urlsplit(request.path).path
        name = path.rpartition("/")[2]
        if request.method == "POST":
            self.reports[name] = json.loads(request.body)
            writer.write(response(204, "text/plain", b""))
        elif path == "/favicon.ico":
            writer.write(response(204, "text/plain", b""))
        elif path.startswith("/url/"):
            self.waiting.add(name)
            writer.write(response(200, "text/plain", self.urls.get(name, "").encode()))
        else:
            writer.write(self._file(path))

    def _file(self, path: str) -> bytes:
        """Returns the response with one file of the repository."""
        file = (_ROOT / path.lstrip("/")).resolve()
        if not (file.is_relative_to(_ROOT) and file.suffix in _TYPES and file.is_file()):
            return response(404, "text/plain", b"no such file")
        body = file.read_bytes().replace(_EXAMPLE_GATEWAY, self._gateway_url.encode())
        return response(200, _TYPES[file.suffix], body)


async def run_script(name: str, argument: str) -> Any:
    """Runs a script of tests/e2e/javascript in Node, and returns the JSON that it prints."""
    needs("node (Debian: apt install nodejs)", shutil.which("node"))
    process = await asyncio.create_subprocess_exec(
        *("node", str(SCRIPTS / name), argument), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_SCRIPT_SECONDS_MAX):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return json.loads(printed)


async def follow_in(runtime: str, stream_url: str, **options: Any) -> Node:
    """Follows a stream in Node, Deno or Bun; the events are the lines of the process."""
    command = {"deno": ["deno", "run", "--allow-all"]}.get(runtime, [runtime])
    return Node(
        await asyncio.create_subprocess_exec(
            *command, str(SCRIPTS / "follow.mjs"), stream_url, json.dumps(options), stdout=asyncio.subprocess.PIPE
        )
    )


@asynccontextmanager
async def firefox(url: str) -> AsyncIterator[None]:
    """A Firefox of its own that shows a page. Nothing drives it: the page reports what it sees."""
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    needs("firefox (Debian: apt install firefox-esr)", program)
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="midstream-firefox-", ignore_cleanup_errors=True) as home:
        _write_preferences(Path(home))
        process = await asyncio.create_subprocess_exec(
            *(program, "--headless", "--no-remote", "--profile", home, url),
            env={**os.environ, "HOME": home, "MOZ_CRASHREPORTER_DISABLE": "1"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                async with asyncio.timeout(_FIREFOX_END_SECONDS_MAX):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _write_preferences(profile: Path) -> None:
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in _FIREFOX_PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))

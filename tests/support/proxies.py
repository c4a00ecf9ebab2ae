"""Real nginx, Caddy and HAProxy, each a child process with a directory and a port of its own.

with deployed("nginx", ports) as proxy:      # with our configuration from deploy/
    ... proxy.url ...
with Proxy("nginx", "server { listen 127.0.0.1:{port}; ... }") as proxy:   # with another
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from shared.child_processes import end_all
from tests.support.needs import needs
from tests.support.redis_server import free_port

Kind = Literal["nginx", "caddy", "haproxy"]
_ROOT = Path(__file__).resolve().parents[2]
_FILES: dict[Kind, str] = {
    "nginx": "deploy/nginx/midstream.conf",
    "caddy": "deploy/caddy/Caddyfile",
    "haproxy": "deploy/haproxy/haproxy.cfg",
}
_START_SECONDS_MAX = 15.0
_END_SECONDS_MAX = 5.0
_GATEWAY_PORTS = ("8000", "8001")
"""What our configurations say, for two gateways on the same machine."""

_NGINX = """\
daemon off; master_process off; worker_rlimit_nofile 16384; pid {directory}/pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log /dev/stderr; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
{sites}
}}
"""


def binary_of(kind: Kind) -> str | None:
    """Returns the path of the program, also if its folder is only in root's PATH."""
    return shutil.which(kind, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Proxy:
    """A context: one proxy. In the configuration `{port}` stands for its port; nginx's belongs inside `http { }`."""

    def __init__(self, kind: Kind, configuration: str) -> None:
        binary = binary_of(kind)
        needs(f"{kind} (Debian: apt install {kind})", binary)
        self.kind = kind
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = Path(tempfile.mkdtemp(prefix=f"midstream-{kind}-"))
        text = configuration.replace("{port}", str(self.port))
        if kind == "nginx":
            text = _NGINX.format(directory=self._directory, sites=text)
        elif kind == "caddy":
            ours = "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n"
            own = re.compile(r"^\{\n", re.MULTILINE)  # the configuration's own global options
            text = own.sub(ours, text, count=1) if own.search(text) else f"{ours}}}\n{text}"
        file = self._directory / "configuration"
        file.write_text(text)
        options = {
            "nginx": ["-c", str(file), "-p", str(self._directory)],
            "caddy": ["run", "--adapter", "caddyfile", "--config", str(file)],
            "haproxy": ["-db", "-f", str(file)],
        }
        self._command = [str(binary), *options[kind]]
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        home = str(self._directory)
        environment = {**os.environ, "HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home}
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(self._command, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self.logged()
                self._end()
                raise AssertionError(f"{self.kind} did not start:\n{log}")
            time.sleep(0.02)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"--- {self.kind}\n{self.logged()[-3000:]}")
        self._end()

    def logged(self) -> str:
        return self._log.read_text(errors="replace")

    def _listens(self) -> bool:
        with socket.socket() as trial:
            trial.settimeout(1)
            return trial.connect_ex(("127.0.0.1", self.port)) == 0

    def _end(self) -> None:
        assert self._process is not None
        end_all([self._process], within_seconds=_END_SECONDS_MAX, first_signal=signal.SIGTERM)
        shutil.rmtree(self._directory, ignore_errors=True)


def deployed(kind: Kind, gateway_ports: Sequence[int]) -> Proxy:
    """Returns the proxy with the configuration that we ship; only the addresses are replaced."""
    assert len(gateway_ports) == len(_GATEWAY_PORTS)
    text = (_ROOT / _FILES[kind]).read_text()
    for shipped, port in zip(_GATEWAY_PORTS, gateway_ports, strict=True):
        text, count = re.subn(rf"^([^#\n]*127\.0\.0\.1:){shipped}\b", rf"\g<1>{port}", text, flags=re.MULTILINE)
        assert count, f"{_FILES[kind]} has no 127.0.0.1:{shipped}"
    listening = {
        "nginx": (r"^    listen 80;\n    listen \[::\]:80;$", "    listen 127.0.0.1:{port};"),
        "caddy": (r"^:80 \{$", "http://:{port} {\n\tbind 127.0.0.1"),
        "haproxy": (r"^    bind :80$", "    bind 127.0.0.1:{port}"),
    }
    pattern, instead = listening[kind]
    text, count = re.subn(pattern, instead, text, flags=re.MULTILINE)
    assert count == 1, f"{_FILES[kind]} does not listen where it did"
    return Proxy(kind, text)

"""What the files in deploy/ and docker-compose.yml start: commands, environments, health checks, times to stop.

The three deployments have one form here, so that one test can start each of them without its tool. Addresses in commands and
environments are those of the files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SYSTEMD = DEPLOY / "systemd"
_UNITS = re.compile(r"(\d+)(s|m|ms)?")
_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60}


@dataclass(frozen=True)
class Part:
    """A gateway or a worker, as one deployment starts it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    checks: Sequence[Sequence[str]]
    """Health checks: commands that succeed while the part is healthy."""
    stop_seconds: float
    """The time from SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Way:
    gateway: Part
    worker: Part
    gateway_port: str
    worker_port: str
    health_port: str
    """Where a gateway says how it is: its own port, or that of its metrics."""


def seconds(duration: object) -> float:
    """Returns a duration like `10s` or 10 in seconds. AssertionError for anything else."""
    found = _UNITS.fullmatch(str(duration))
    assert found, f"{duration!r} is no duration"
    return int(found[1]) * _SECONDS[found[2]]


# --- the image


def image_environment() -> dict[str, str]:
    """Returns the ENV of the image, without PATH."""
    (line,) = re.findall(r"^ENV (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return {name: value for name, _, value in (pair.partition("=") for pair in shlex.split(line)) if name != "PATH"}


# --- docker compose


def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def by_compose() -> Way:
    services = compose()["services"]

    def part(name: str) -> Part:
        service = services[name]
        environment = {key: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for key, value in service["environment"].items()}
        check = service["healthcheck"]["test"]
        assert check[0] == "CMD"
        return Part(
            shlex.split(service["command"]),
            image_environment() | environment,
            [check[1:]],
            seconds(service["stop_grace_period"]),
        )

    return Way(part("gateway"), part("worker"), "8000", "9464", "9463")


# --- systemd


def unit(name: str) -> dict[str, list[str]]:
    """Returns the values of a unit by key. A key may occur more than once."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / f"midstream-{name}@.service").read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def environment_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def by_systemd() -> Way:
    def part(name: str, instance: str) -> Part:
        values = unit(name)
        environment: dict[str, str] = {}
        for path in values["EnvironmentFile"]:
            environment |= environment_file(SYSTEMD / Path(path.removeprefix("-")).name)
        environment |= dict(pair.split("=", 1) for pair in values["Environment"])

        def command(line: str) -> list[str]:
            return shlex.split(line.removeprefix("-").replace("%i", instance))

        (start,) = map(command, values["ExecStart"])
        (stop,) = map(seconds, values["TimeoutStopSec"])
        checks = [*map(command, values.get("ExecStartPost", []))]
        return Part(start, environment, checks, stop)

    return Way(part("gateway", "8000"), part("worker", "1"), "8000", "9464", "8000")


# --- Kubernetes


def manifests() -> dict[tuple[str, str], Any]:
    """Returns all objects of deploy/kubernetes, by kind and name."""
    resources = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    files = [KUBERNETES / path for path in resources if path.endswith(".yaml")]
    objects = [item for path in files for item in yaml.safe_load_all(path.read_text())]
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def pod(name: str) -> Any:
    """Returns the pod of one of our deployments."""
    return manifests()["Deployment", f"midstream-{name}"]["spec"]["template"]["spec"]


def _generated(name: str) -> dict[str, str]:
    """Returns the contents of a generated ConfigMap or Secret, with the values of the examples."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    environment: dict[str, str] = {}
    for source in kustomization["configMapGenerator"] + kustomization["secretGenerator"]:
        if source["name"] == name:
            environment |= dict(line.split("=", 1) for line in source.get("literals", []))
            for path in source.get("envs", []):
                environment |= environment_file(KUBERNETES / f"{path}.example")
    assert environment, f"kustomization.yaml makes no {name}"
    return environment


def by_kubernetes() -> Way:
    def part(name: str) -> Part:
        (container,) = pod(name)["containers"]
        environment = image_environment()
        for source in container["envFrom"]:
            (reference,) = source.values()
            environment |= _generated(reference["name"])
        environment |= {variable["name"]: variable["value"] for variable in container["env"]}
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        requests = [container[probe]["httpGet"] for probe in ("readinessProbe", "livenessProbe")]
        checks = [
            ["curl", "-sf", f"http://127.0.0.1:{ports[request['port']]}{request['path']}"] for request in requests
        ]
        return Part(container["command"], environment, checks, pod(name)["terminationGracePeriodSeconds"])

    return Way(part("gateway"), part("worker"), "8000", "9464", "9463")


WAYS = {"compose": by_compose, "systemd": by_systemd, "kubernetes": by_kubernetes}

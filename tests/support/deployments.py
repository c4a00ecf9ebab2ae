"""What the files in deploy/ and docker-compose.yml start: commands, environments, health checks, times to stop.

One shape for the three ways, so that one test can start each of them by hand. Their own addresses stand in them still.
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
    """A gateway or a worker, as one way starts it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    checks: Sequence[Sequence[str]]
    """Commands that succeed while it is well."""
    stop_seconds: float
    """From SIGTERM to SIGKILL."""


@dataclass(frozen=True)
class Way:
    gateway: Part
    worker: Part
    gateway_port: str
    worker_port: str


def seconds(told: object) -> float:
    """What `10s` or 10 is. AssertionError for anything else."""
    found = _UNITS.fullmatch(str(told))
    assert found, f"{told!r} is no time"
    return int(found[1]) * _SECONDS[found[2]]


# --- the image


def image_environment() -> dict[str, str]:
    """ENV of the image, without its PATH."""
    (line,) = re.findall(r"^ENV (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return {name: value for name, _, value in (one.partition("=") for one in shlex.split(line)) if name != "PATH"}


# --- docker compose


def compose() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def by_compose() -> Way:
    services = compose()["services"]

    def part(name: str) -> Part:
        service = services[name]
        told = {key: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for key, value in service["environment"].items()}
        check = service["healthcheck"]["test"]
        assert check[0] == "CMD"
        return Part(
            shlex.split(service["command"]),
            image_environment() | told,
            [check[1:]],
            seconds(service["stop_grace_period"]),
        )

    return Way(part("gateway"), part("worker"), "8000", "9464")


# --- systemd


def unit(name: str) -> dict[str, list[str]]:
    """What a unit says, by key. A key may be said more than once."""
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
        said = unit(name)
        told: dict[str, str] = {}
        for one in said["EnvironmentFile"]:
            told |= environment_file(SYSTEMD / Path(one.removeprefix("-")).name)
        told |= dict(one.split("=", 1) for one in said["Environment"])

        def command(line: str) -> list[str]:
            return shlex.split(line.removeprefix("-").replace("%i", instance))

        (start,) = map(command, said["ExecStart"])
        (stop,) = map(seconds, said["TimeoutStopSec"])
        checks = [*map(command, said.get("ExecStartPost", []))]
        return Part(start, told, checks, stop)

    return Way(part("gateway", "8000"), part("worker", "1"), "8000", "9464")


# --- Kubernetes


def manifests() -> dict[tuple[str, str], Any]:
    """All objects of deploy/kubernetes, by kind and name."""
    resources = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    files = [KUBERNETES / one for one in resources if one.endswith(".yaml")]
    objects = [one for path in files for one in yaml.safe_load_all(path.read_text())]
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def pod(name: str) -> Any:
    """The pod of one of our deployments."""
    return manifests()["Deployment", f"midstream-{name}"]["spec"]["template"]["spec"]


def _generated(name: str) -> dict[str, str]:
    """What a generated ConfigMap or Secret holds, with the examples' values."""
    said = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    told: dict[str, str] = {}
    for one in said["configMapGenerator"] + said["secretGenerator"]:
        if one["name"] == name:
            told |= dict(line.split("=", 1) for line in one.get("literals", []))
            for path in one.get("envs", []):
                told |= environment_file(KUBERNETES / f"{path}.example")
    assert told, f"kustomization.yaml makes no {name}"
    return told


def by_kubernetes() -> Way:
    def part(name: str) -> Part:
        (container,) = pod(name)["containers"]
        told = image_environment()
        for source in container["envFrom"]:
            (reference,) = source.values()
            told |= _generated(reference["name"])
        told |= {one["name"]: one["value"] for one in container["env"]}
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        asked = [container[probe]["httpGet"] for probe in ("readinessProbe", "livenessProbe")]
        checks = [["curl", "-sf", f"http://127.0.0.1:{ports[one['port']]}{one['path']}"] for one in asked]
        return Part(container["command"], told, checks, pod(name)["terminationGracePeriodSeconds"])

    return Way(part("gateway"), part("worker"), "8000", "9464")


WAYS = {"compose": by_compose, "systemd": by_systemd, "kubernetes": by_kubernetes}

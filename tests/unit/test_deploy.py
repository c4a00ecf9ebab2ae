"""Compares the deployments with the code: settings, ports, times to stop, the image's contents, and who gets which secret."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from base64 import b64decode
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.http.hosts import Hosts
from gateway.supervisor import _KILL_SECONDS
from shared.connections import address_of
from shared.settings import Settings, described
from tests.support.deployments import (
    DEPLOY,
    KUBERNETES,
    ROOT,
    SYSTEMD,
    WAYS,
    Part,
    compose,
    environment_file,
    manifests,
    pod,
    seconds,
    unit,
)
from tests.support.needs import needs

_OURS = re.compile(r"\b(?:MIDSTREAM|OPENAI)_[A-Z_]*[A-Z]\b")
_FILES = [
    ROOT / "docker-compose.yml",
    DEPLOY / "Dockerfile",
    *(
        path
        for room in ("redis", "systemd", "kubernetes", "kubernetes-cluster", "nginx")
        for path in (DEPLOY / room).iterdir()
    ),
]
_PACKAGES = ("shared", "gateway", "producer", "midstream", "bench")


def settings_of(part: Part) -> Settings:
    """Returns the settings of a process. AssertionError for a MIDSTREAM_ variable that is not a setting."""
    known = {one.env for one in described()}
    assert {name for name in part.environment if _OURS.fullmatch(name)} <= known
    return Settings.from_environment(part.environment)


# --- all of them


@pytest.mark.parametrize("path", _FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_in_a_deployment_exists(path: Path) -> None:
    assert set(_OURS.findall(path.read_text())) <= {one.env for one in described()}


@pytest.mark.parametrize("way", WAYS)
def test_gateways_and_workers_get_the_addresses_they_need(way: str) -> None:
    parts = WAYS[way]()
    gateway, worker = settings_of(parts.gateway), settings_of(parts.worker)
    assert gateway.redis_url == worker.redis_url
    assert str(gateway.port) == parts.gateway_port
    assert str(worker.metrics_port) == parts.worker_port
    for part, port in ((parts.gateway, parts.health_port), (parts.worker, parts.worker_port)):
        for check in part.checks:
            assert f":{port}/" in " ".join(check)
    if way != "systemd":  # from another container they must be reached, on one machine they need not be
        assert gateway.host == worker.metrics_host == "0.0.0.0"


@pytest.mark.parametrize("way", WAYS)
def test_strangers_are_asked_who_they_are_wherever_they_can_come(way: str) -> None:
    """Compose publishes its ports on this machine only (another test), so that it starts without a key."""
    parts = WAYS[way]()
    assert settings_of(parts.gateway).auth == ("none" if way == "compose" else "required")
    assert "MIDSTREAM_TOKEN_KEYS" in parts.gateway.environment
    assert way == "systemd" or "MIDSTREAM_TOKEN_KEYS" not in parts.worker.environment


@pytest.mark.parametrize("way", WAYS)
def test_the_time_to_stop_is_longer_than_draining_takes(way: str) -> None:
    parts = WAYS[way]()
    gateway, worker = settings_of(parts.gateway), settings_of(parts.worker)
    pause = 0.0
    if way == "kubernetes":
        name, *arguments = pod("gateway")["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert name == "sleep"
        pause = float(arguments[0])
        readiness = pod("gateway")["containers"][0]["readinessProbe"]
        assert pause > readiness["periodSeconds"] * readiness["failureThreshold"]
    assert parts.gateway.stop_seconds > pause + gateway.drain_seconds + _KILL_SECONDS
    assert parts.worker.stop_seconds >= worker.worker_drain_seconds + 5


@pytest.mark.parametrize("way", WAYS)
def test_the_console_is_off_and_host_names_are_configured(way: str) -> None:
    gateway = settings_of(WAYS[way]().gateway)
    assert gateway.console == "off"
    assert gateway.hosts
    assert "*" not in gateway.hosts
    Hosts(gateway)  # it can be read


@pytest.mark.parametrize("way", WAYS)
def test_the_providers_key_goes_to_workers_only(way: str) -> None:
    parts = WAYS[way]()
    assert "OPENAI_API_KEY" in parts.worker.environment
    assert "OPENAI_API_KEY" not in parts.gateway.environment


def test_nginx_has_enough_time_to_stop() -> None:
    (shutdown,) = re.findall(r"worker_shutdown_timeout (\w+);", (DEPLOY / "nginx" / "container.conf").read_text())
    assert seconds(compose()["services"]["nginx"]["stop_grace_period"]) > seconds(shutdown)


# --- docker compose and the image


def test_mounted_files_exist_and_volumes_are_declared() -> None:
    file = compose()
    for name, service in file["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in file["volumes"], (
                f"{name}: {volume}"
            )
        assert set(service.get("depends_on", [])) <= set(file["services"])
        assert service["healthcheck"]["test"][0] == "CMD"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: there is no access control, and {port} is open to the world"


def test_the_cluster_of_compose_is_made_of_its_nodes() -> None:
    file = compose()
    nodes = {name: one for name, one in file["services"].items() if re.fullmatch(r"redis-\d", name)}
    addresses = [one["networks"]["redis-cluster"]["ipv4_address"] for one in nodes.values()]
    maker = file["services"]["redis-cluster"]
    assert re.findall(r"(\S+):6379", maker["command"][2]) == addresses
    assert list(maker["depends_on"]) == list(nodes)
    (network,) = file["networks"]["redis-cluster"]["ipam"]["config"]
    assert all(ip_address(address) in ip_network(network["subnet"]) for address in addresses)
    assert {one["profiles"][0] for one in (maker, *nodes.values())} == {"cluster"}
    volumes = [volume for one in nodes.values() for volume in one["volumes"] if volume.endswith(":/data")]
    assert len(set(volumes)) == len(nodes), "each has its own"
    for name in ("gateway", "worker"):
        assert "redis-cluster" in file["services"][name]["networks"]


@pytest.mark.parametrize("name", ["redis", "redis-1", "redis-cluster", "gateway", "worker", "nginx"])
def test_our_containers_have_few_privileges(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["logging"]["options"]["max-size"]
    if "build" not in service:  # our own image sets the user in its Dockerfile
        assert service["user"] in ("redis", "nginx")


def test_nginx_in_compose_differs_from_the_documented_configuration_only_in_addresses(tmp_path: Path) -> None:
    shipped = (DEPLOY / "nginx" / "midstream.conf").read_text()
    shell, options, script = compose()["services"]["nginx"]["command"]
    made = tmp_path / "midstream.conf"
    script, end, _ = script.partition("exec nginx")
    assert end
    script = script.replace("/etc/midstream/", f"{DEPLOY}/nginx/").replace("/tmp/midstream.conf", str(made))
    subprocess.run([shell, options, script], check=True, timeout=10)
    now, before = made.read_text().splitlines(), shipped.splitlines()
    added, gone = set(now) - set(before), set(before) - set(now)
    assert {line.strip() for line in added} == {
        "zone midstream 64k; server gateway:8000 max_fails=0 resolve;",
        "listen 8000;",
    }
    assert len(gone) == 4
    assert f"include {'/tmp/midstream.conf'};" in (DEPLOY / "nginx" / "container.conf").read_text()


def test_the_image_has_all_our_packages_and_does_not_run_as_root() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = " ".join(re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)).split()
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(copied) == set(let_in)
    assert set(_PACKAGES) <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
    (user,) = re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)
    assert int(user) > 0
    assert f"--uid {user} " in dockerfile


def test_the_packages_are_installed_with_all_their_files(tmp_path: Path) -> None:
    """Scripts for Redis and pages, too: the image installs the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        str(path.relative_to(ROOT))
        for package in _PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"shared/scripts/append.lua", "gateway/console/web/console.html"} <= ours
    assert ours <= packed


# --- systemd


def test_units_have_the_same_confinement_and_restart() -> None:
    gateway, worker = unit("gateway"), unit("worker")
    own = {"ExecStart", "ExecStartPost", "Description", "TimeoutStopSec", "EnvironmentFile"}
    assert {key: gateway[key] for key in gateway.keys() - own} == {key: worker[key] for key in worker.keys() - own}
    assert gateway["Restart"] == ["always"]
    assert gateway["DynamicUser"] == ["yes"]
    assert gateway["KillMode"] == ["mixed"]


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    needs("systemd-analyze (Debian: apt install systemd)", analyze)
    for path in SYSTEMD.glob("*.service"):
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/midstream/bin/python", sys.executable))
    command = [str(analyze), "verify", "--man=no", *map(str, tmp_path.glob("*.service"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- Kubernetes


def test_files_named_in_kustomizations_exist() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        assert (KUBERNETES / name).exists(), name
    here = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert here == {name for name in kustomization["resources"] if name.endswith(".yaml")}
    for secret in kustomization["secretGenerator"]:
        for name in secret["envs"]:
            assert (KUBERNETES / f"{name}.example").exists()
    assert "*.env" in (KUBERNETES / ".gitignore").read_text().splitlines()
    assert {one["name"] for one in kustomization["images"]} == {
        pod(one)["containers"][0]["image"] for one in ("gateway", "worker")
    }
    (made,) = yaml.safe_load((DEPLOY / "redis" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert (made["name"], made["files"]) == ("midstream-redis", ["redis.conf"])


def sets() -> list[Any]:
    return [one for (kind, _), one in manifests().items() if kind in ("Deployment", "StatefulSet")]


@pytest.mark.parametrize("one", sets(), ids=lambda one: str(one["metadata"]["name"]))
def test_pods_are_found_and_confined(one: Any) -> None:
    labels, spec = one["spec"]["template"]["metadata"]["labels"], one["spec"]["template"]["spec"]
    assert one["spec"]["selector"]["matchLabels"] == labels
    assert spec["enableServiceLinks"] is False  # otherwise Kubernetes' service variables could become settings
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    names = {port["name"] for port in container["ports"]}
    services = [each for (kind, _), each in manifests().items() if kind == "Service"]
    targets = [each["spec"]["ports"][0]["targetPort"] for each in services if each["spec"]["selector"] == labels]
    assert set(targets) <= names
    assert targets or one["metadata"]["name"] == "midstream-worker"  # no other pod connects to a worker


def test_a_rolling_update_keeps_a_gateway_running() -> None:
    gateway = manifests()["Deployment", "midstream-gateway"]["spec"]
    assert gateway["replicas"] >= 2
    assert gateway["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budget = manifests()["PodDisruptionBudget", "midstream-gateway"]["spec"]
    assert budget["maxUnavailable"] < gateway["replicas"]
    assert budget["selector"] == gateway["selector"]


def test_the_ingress_does_not_buffer_and_passes_only_public_paths() -> None:
    ingress = manifests()["Ingress", "midstream"]
    annotations = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert annotations["proxy-buffering"] == "off"
    assert annotations["proxy-http-version"] == "1.1"
    assert float(annotations["proxy-read-timeout"]) > 600  # ?wait=
    assert int(annotations["proxy-body-size"].removesuffix("m")) << 20 >= Settings().body_bytes_max
    assert all(isinstance(value, str) for value in annotations.values())  # an annotation is never a number
    paths = ingress["spec"]["rules"][0]["http"]["paths"]
    assert {path["path"] for path in paths} == {
        *("/v1/streams", "/v1/chat", "/v1/responses", "/v1/models", "/v1/probe", "/api/chat", "/stream")
    }
    (host,) = {rule["host"] for rule in ingress["spec"]["rules"]}
    assert host in settings_of(WAYS["kubernetes"]().gateway).hosts.split(",")
    services = {name for kind, name in manifests() if kind == "Service"}
    for path in paths:
        service = path["backend"]["service"]
        assert service["name"] in services
        ports = manifests()["Service", service["name"]]["spec"]["ports"]
        assert service["port"]["name"] in {port["name"] for port in ports}


def test_the_manifests_for_a_cluster_replace_the_redis(tmp_path: Path) -> None:
    """As kustomize makes them, where there is one; without it only that what they name exists."""
    folder = DEPLOY / "kubernetes-cluster"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert all((folder / name).exists() for name in kustomization["resources"])
    addresses = environment_file(folder / "cluster.env.example")
    assert isinstance(address_of(addresses["MIDSTREAM_REDIS_URL"]), tuple)
    base = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert kustomization["images"] == base["images"]
    (patch,) = kustomization["patches"]
    assert set(patch["target"]["kind"].split("|")) >= {
        kind for kind, name in manifests() if name == patch["target"]["name"]
    }
    (doctor,) = yaml.safe_load_all((folder / "doctor.yaml").read_text())
    container = doctor["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "midstream.cli", "doctor", "--redis"]
    kustomize = shutil.which("kubectl")
    if kustomize is None:
        return
    for room in ("kubernetes", "kubernetes-cluster", "redis"):
        shutil.copytree(DEPLOY / room, tmp_path / room)
    for example in tmp_path.glob("*/*.env.example"):
        shutil.copy(example, example.with_suffix(""))
    made = subprocess.run(
        [kustomize, "kustomize", str(tmp_path / "kubernetes-cluster")], capture_output=True, text=True, timeout=60
    )
    assert made.returncode == 0, made.stderr
    objects = list(yaml.safe_load_all(made.stdout))
    assert not [one for one in objects if one["metadata"]["name"].startswith("midstream-redis")]
    urls = [one["stringData"] if "stringData" in one else one["data"] for one in objects if one["kind"] == "Secret"]
    (encoded,) = [data["MIDSTREAM_REDIS_URL"] for data in urls if "MIDSTREAM_REDIS_URL" in data]
    assert b64decode(encoded).decode() == addresses["MIDSTREAM_REDIS_URL"]

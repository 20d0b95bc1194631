"""The Helm chart: what it renders is what Kubernetes takes, and what popi reads."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import httpx2
import pytest
from helm import CHART, Rendered, needs_helm, render

from popi.config.http import HttpConfig
from popi.serving.pages.settings import PageSettings
from popi.serving.proxy.settings import JwtSettings, ProxySettings, UpstreamSettings
from popi.serving.server import free_port
from popi.serving.settings import (
    CaptureSettings,
    GatewaySettings,
    ProfileSettings,
    RenewalSettings,
    ServerSettings,
    of_worker,
    read,
)
from popi.serving.worker.inference import InferenceSettings
from popi.serving.worker.inference import read as read_inference

pytestmark = needs_helm

KEYS = {"UPSTREAM_KEY": {"name": "llm", "key": "up"}, "SUMMARY_KEY": {"name": "llm", "key": "down"}}
LEAST: dict[str, Any] = {
    "settings": {
        "proxy": {"upstream": "http://127.0.0.1:9"},
        "inference": {"url": "http://127.0.0.1:9", "model": "m", "key_env": "SUMMARY_KEY"},
    },
    "secrets": {"keys": KEYS},
    "upstreamKeyEnv": "UPSTREAM_KEY",
}
EVERYTHING: dict[str, Any] = LEAST | {
    "image": {"repository": "registry.example/popi", "digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "secrets": {"keys": KEYS, "idSecret": {"name": "popi", "key": "ids"}},
    "gateway": {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "llm", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "podAnnotations": {"a.example/b": "c"},
        "podLabels": {"team": "llm"},
        "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/ca/ca.pem"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    },
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
        "hosts": [{"host": "llm.example", "paths": ["/v1", "/users", "/me"]}],
        "tls": [{"secretName": "tls", "hosts": ["llm.example"]}],
    },
    "autoscaling": {"enabled": True, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {
        "enabled": True,
        "from": [{"namespaceSelector": {}}],
        "extraEgress": [{"to": [{"podSelector": {}}], "ports": [{"port": 8000}]}],
    },
}


@pytest.fixture(scope="module")
def least() -> Rendered:
    return render(LEAST, check_for="1.36")


@pytest.fixture(scope="module")
def everything() -> Rendered:
    return render(EVERYTHING, check_for="1.27")  # the oldest that the chart says


def pod(rendered: Rendered, which: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod's spec of a Deployment, and its container."""
    spec = rendered.objects["Deployment", f"shop-popi-{which}"]["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def secrets_of(container: dict[str, Any]) -> dict[str, tuple[str, str]]:
    given = [(one["name"], one["valueFrom"]["secretKeyRef"]) for one in container["env"] if "valueFrom" in one]
    return {name: (of["name"], of["key"]) for name, of in given}


def toml(rendered: Rendered, folder: Path) -> Path:
    file = folder / "gateway.toml"
    file.write_text(rendered.objects["ConfigMap", "shop-popi"]["data"]["gateway.toml"])
    return file


def test_all_that_it_renders_is_as_kubernetes_and_helm_want_it(least: Rendered, everything: Rendered) -> None:
    for one in (least, everything):
        assert (one.error, one.problems) == ("", [])
    assert {kind for kind, _ in least.objects} == {
        "ConfigMap",
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    assert {kind for kind, _ in everything.objects} - {kind for kind, _ in least.objects} == {
        "HorizontalPodAutoscaler",
        "Ingress",
        "NetworkPolicy",
        "PodMonitor",
        "ServiceMonitor",
    }
    assert "popi keys create" in least.notes
    deployment = everything.objects["Deployment", "shop-popi-gateway"]
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    assert pod(everything, "gateway")[1]["image"] == "registry.example/popi@sha256:" + "0" * 64


def test_selectors_meet_the_pods_that_they_are_for(everything: Rendered) -> None:
    labels = {
        which: everything.objects["Deployment", f"shop-popi-{which}"]["spec"]["template"]["metadata"]["labels"]
        for which in ("gateway", "worker")
    }
    chosen = {}
    for (kind, name), one in everything.objects.items():
        spec = one["spec"] if "spec" in one else {}
        selector = spec.get("selector") or spec.get("podSelector")
        if kind == "ServiceMonitor":  # chooses Services
            assert (
                selector["matchLabels"].items()
                <= everything.objects["Service", "shop-popi"]["metadata"]["labels"].items()
            )
        elif selector is not None:
            wanted = selector.get("matchLabels", selector)
            chosen[kind, name] = {which for which, found in labels.items() if wanted.items() <= found.items()}
    assert chosen == {
        ("Deployment", "shop-popi-gateway"): {"gateway"},
        ("Deployment", "shop-popi-worker"): {"worker"},
        ("NetworkPolicy", "shop-popi-gateway"): {"gateway"},
        ("NetworkPolicy", "shop-popi-worker"): {"worker"},
        ("PodDisruptionBudget", "shop-popi-gateway"): {"gateway"},
        ("PodMonitor", "shop-popi-worker"): {"worker"},
        ("Service", "shop-popi"): {"gateway"},
    }


def test_pods_may_do_little_and_get_the_secrets_that_they_need_alone(everything: Rendered) -> None:
    for which in ("gateway", "worker"):
        spec, container = pod(everything, which)
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 8600
        assert not spec["automountServiceAccountToken"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "limits" in container["resources"] and "requests" in container["resources"]
    assert "useradd --uid 8600" in (CHART.parents[2] / "Dockerfile").read_text()
    assert secrets_of(pod(everything, "gateway")[1]) == {
        "POPI_STORE": ("popi", "store"),
        "POPI_ADMIN_KEY": ("popi", "admin-key"),
        "POPI_ID_SECRET": ("popi", "ids"),
        "UPSTREAM_KEY": ("llm", "up"),
    }
    assert secrets_of(pod(everything, "worker")[1]) == {
        "POPI_STORE": ("popi", "store"),
        "SUMMARY_KEY": ("llm", "down"),
    }


def test_the_end_has_the_time_that_the_settings_say(tmp_path: Path) -> None:
    for server, grace in (
        ({}, 150),
        ({"shutdown_delay_s": 2.5, "drain_timeout_s": 600}, 618),
        ({"shutdown_delay_s": None, "drain_timeout_s": None}, 45),
    ):
        rendered = render(LEAST | {"settings": LEAST["settings"] | {"server": server}})
        spec, _ = pod(rendered, "gateway")
        found = read(toml(rendered, tmp_path)).server
        assert spec["terminationGracePeriodSeconds"] == grace >= found.shutdown_delay_s + found.drain_timeout_s + 15


def test_every_setting_arrives_as_it_was_written(tmp_path: Path) -> None:
    """Of each table a value of each type: whole numbers, as Helm's are floats, texts with quotes and line ends."""
    given = GatewaySettings(
        server=ServerSettings(shutdown_delay_s=0.25, connections=10_000_000, cors_origins=("https://a.example", "*")),
        proxy=ProxySettings(
            upstreams=(
                UpstreamSettings(
                    name="a", url="https://a.example/v1", key_env="UPSTREAM_KEY", models=("gpt-*", 'o"[0-9]')
                ),
                UpstreamSettings(name="b", url="http://b.example?api-version=2024-10-21", protocol="anthropic"),
            ),
            block='<é 😀 &>\n\t"{summary}" \\ \u2028 {{ .Values }}',
            jwt=JwtSettings(jwks_url="https://idp.example/keys", audience="chat", leeway_s=0.5),
            max_upload_bytes=2**40,
            requests_per_s=1e-7,
            otel=True,
        ),
        http=HttpConfig(ca_bundle="/etc/ssl/ca.pem", connect_timeout_s=2.5),
        inference=InferenceSettings(
            url="https://a.example/v1",
            model="m",
            key_env="SUMMARY_KEY",
            temperature="default",
            extra={"top_p": 0.9, "stop": ["\n", "'"], "nested": {"a b": True, "n": 3}},
        ),
        renewal=RenewalSettings(quiet_s=1, input_price=0.15, tenant_tokens_per_day=10**9, reasons=False),
        capture=CaptureSettings(tenants=("shop",), retention_hours=0.5),
        page=PageSettings(name="Ann's café", url="https://chat.example"),
        profiles=ProfileSettings(signals=5, versions=2),
    )
    settings = given.model_dump(mode="json")
    for table in (settings["proxy"], settings["proxy"]["jwt"], *settings["proxy"]["upstreams"]):
        for name in ("upstream_key", "id_secret", "key"):
            assert table.pop(name, None) is None
    values = {"settings": settings, "secrets": {"keys": KEYS}}
    rendered = render(values)
    assert rendered.error == ""
    file = toml(rendered, tmp_path)
    assert read(file) == given and of_worker(file) == given and read_inference(file) == given.inference
    assert set(secrets_of(pod(rendered, "gateway")[1])) == {"POPI_STORE", "POPI_ADMIN_KEY", "UPSTREAM_KEY"}


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"settings": {"inference": LEAST["settings"]["inference"]}}, "settings.proxy.upstream"),
        ({"settings": LEAST["settings"] | {"inference": {}}}, "worker.enabled=false"),
        ({"settings": LEAST["settings"] | {"proxy": {"upstreem": "http://h"}}}, "upstreem"),
        ({"settings": LEAST["settings"] | {"server": {"drain_timeout_s": 0}}}, "drain_timeout_s"),
        ({"settings": LEAST["settings"] | {"server": {"drain_timeout_s": "30"}}}, "drain_timeout_s"),
        ({"settings": LEAST["settings"] | {"serverr": {}}}, "serverr"),
        ({"settings": {"proxy": {"upstream": "http://h", "upstream_key": "sk-secret"}}}, "upstream_key"),
        ({"settings": {"proxy": {"upstream": "http://h", "id_secret": "secret"}}}, "id_secret"),
        ({"settings": {"proxy": {"upstreams": [{"name": "a", "url": "http://h", "key": "sk-secret"}]}}}, "key"),
        ({"upstreamKeyEnv": "ANOTHER"}, "secrets.keys.ANOTHER"),
        ({"secrets": {"keys": {"UPSTREAM_KEY": "sk-secret"}}}, "UPSTREAM_KEY"),
        ({"secrets": {"store": {"name": "", "key": "store"}}}, "store"),
        ({"gateway": {"replica": 3}}, "replica"),
        (
            {
                "settings": LEAST["settings"] | {"proxy": {"upstream": "http://h", "metrics_access": "nobody"}},
                "serviceMonitor": {"enabled": True},
            },
            "metrics_access",
        ),
    ],
)
def test_what_popi_would_refuse_is_refused_before_it_is_installed(changed: dict[str, Any], word: str) -> None:
    refused = render(LEAST | changed)
    assert word in refused.error and "sk-secret" not in refused.error


def test_who_may_read_the_metrics_is_who_reads_them() -> None:
    proxy = {"proxy": {"upstream": "http://h", "metrics_access": "admin"}}
    rendered = render(LEAST | {"settings": LEAST["settings"] | proxy, "serviceMonitor": {"enabled": True}})
    endpoint = rendered.objects["ServiceMonitor", "shop-popi-gateway"]["spec"]["endpoints"][0]
    assert endpoint["authorization"] == {"credentials": {"name": "popi", "key": "admin-key"}}


def test_without_a_worker_the_gateway_renews() -> None:
    rendered = render(LEAST | {"worker": {"enabled": False}})
    assert ("Deployment", "shop-popi-worker") not in rendered.objects
    container = pod(rendered, "gateway")[1]
    assert "--no-worker" not in container["args"]
    assert {"UPSTREAM_KEY", "SUMMARY_KEY"} <= set(secrets_of(container))


def test_its_commands_run_and_its_probes_are_answered(least: Rendered, tmp_path: Path) -> None:
    """Both containers' commands as processes here: other ports, the file elsewhere, and SQLite."""
    ports = {"8600": str(free_port()), "9100": str(free_port())}
    file = toml(least, tmp_path)
    file.write_text(file.read_text().replace("shutdown_delay_s = 15", "shutdown_delay_s = 0"))
    assert tomllib.loads(file.read_text())["server"]["shutdown_delay_s"] == 0
    processes = []
    try:
        for which in ("gateway", "worker"):
            container = pod(least, which)[1]
            args = (
                " ".join(container["args"]).replace("/etc/popi/gateway.toml", str(file)).replace("0.0.0.0", "127.0.0.1")
            )
            for port, ours in ports.items():
                args = args.replace(f"port={port}", f"port={ours}")
            given = {name: "a-key-of-the-tests" for name in secrets_of(container)}
            given["POPI_STORE"] = f"sqlite:///{tmp_path}/popi.db"
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "popi.cli", *args.split()], env=os.environ | given, stderr=subprocess.DEVNULL
                )
            )
        _, container = pod(least, "gateway")
        assert container["ports"] == [{"name": "http", "containerPort": 8600}]
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[name]["httpGet"]["port"] == "http"
            answers(f"http://127.0.0.1:{ports['8600']}{container[name]['httpGet']['path']}")
        answers(f"http://127.0.0.1:{ports['9100']}/metrics")
    finally:
        for process in processes:
            process.terminate()
    assert [process.wait(30) for process in processes] == [-signal.SIGTERM, 0]  # uvicorn's, and popi's own


def answers(url: str) -> None:
    give_up = time.monotonic() + 60
    while True:
        try:
            if httpx2.get(url, timeout=10).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < give_up, f"{url} does not answer"
        time.sleep(0.1)

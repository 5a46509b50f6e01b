"""The examples say what the adapter understands: settings, commands, options, variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving_adapter.command_line import main
from serving_adapter.engine.gpu_reports import VARIABLE
from serving_adapter.serving.adapter_settings import AdapterSettings

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


def containers(name: str) -> dict[str, dict[str, Any]]:
    """By name, each with its words and variables; what it waits for at its start, and ends before."""
    read = yaml.safe_load((EXAMPLES / name).read_text())
    if "services" in read:
        return {
            service: {
                "words": [*about["entrypoint"], *str(about.get("command", "")).split()],
                "variables": about["environment"],
                "mounts": {mount.split(":")[1] for mount in about["volumes"]},
                "after": set(about.get("depends_on", ())),
                "probed by": about.get("healthcheck", {}).get("test", ""),
                "shares": about.get("network_mode", ""),
            }
            for service, about in read["services"].items()
        }
    pod = read["spec"]["template"]["spec"]
    sidecars = {about["name"] for about in pod["initContainers"] if about["restartPolicy"] == "Always"}
    return {
        about["name"]: {
            "words": about["command"],
            "variables": {variable["name"]: variable.get("value", "") for variable in about["env"]},
            "mounts": {mount["mountPath"] for mount in about["volumeMounts"] if "subPath" not in mount},
            "after": sidecars - {about["name"]},
            "probed by": " ".join(about.get("startupProbe", {}).get("exec", {}).get("command", ())),
            "shares": "",
        }
        for about in [*pod["containers"], *pod["initContainers"]]
    }


def test_the_file_is_one_and_its_paths_are_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLBOOK_ADAPTER_CONFIG", str(EXAMPLES / "adapter.toml"))
    settings = AdapterSettings.from_environment()
    assert settings.registry is not None
    assert settings.ready_after_probe, "where the file does not say otherwise"
    for name in ("compose.yaml", "kubernetes.yaml"):
        for container in containers(name).values():
            secrets = (settings.salt_key, str(settings.gateway_keys), str(settings.metrics_secret))
            own = container["variables"]["TOLLBOOK_ADAPTER_CONFIG"]
            for path in (settings.spool.folder, settings.registry, *secrets, own):
                assert any(path.startswith(mount) for mount in container["mounts"]), (name, path)


@pytest.mark.parametrize("name", ["compose.yaml", "kubernetes.yaml"])
def test_engine_and_helpers_are_started_as_they_understand_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = containers(name)
    served = found["vllm"]
    assert {"TOLLBOOK_ADAPTER_CONFIG", "TOLLBOOK_REPLICA_ID", "TOLLBOOK_KAFKA", VARIABLE} <= set(served["variables"])
    assert served["after"] == {"ship", "scrape"}, "they see it end"
    assert not [each for each in found.values() if each["shares"]], "a network is a new one after a restart"
    for option, value in (
        ("--middleware", "serving_adapter.Middleware"),
        ("--scheduler-cls", "serving_adapter.engine.vllm_scheduler.MeteringScheduler"),
        ("--scheduling-policy", "priority"),
    ):
        assert served["words"][served["words"].index(option) + 1] == value
    for variable in ("TOLLBOOK_KAFKA", "TOLLBOOK_ADAPTER_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    _, program, words = served["probed by"].rpartition("tollbook-adapter")
    assert program, "each start of the engine is probed"
    assert main(words.split()) == 1
    assert "TOLLBOOK_ADAPTER_CONFIG is not set" in capsys.readouterr().err
    for helper in ("ship", "scrape"):
        program, *words = found[helper]["words"]
        assert program == "tollbook-adapter"
        assert main([re.sub(r"\$[({].*[)}]", "x", word) for word in words]) == 1
        assert "TOLLBOOK_KAFKA is not set" in capsys.readouterr().err, "the command line itself was understood"


def test_each_end_of_a_request_names_tests_and_steps_that_there_are() -> None:
    tests = Path(__file__).parents[2]
    told = (EXAMPLES.parent / "adapter-ends.md").read_text()
    there = "\n".join(
        file.read_text() for folder in ("unit", "integration", "vllm") for file in tests.rglob(f"{folder}/**/*.py")
    )
    names = {
        name
        for line in told.splitlines()
        if line.startswith("| ")
        for name in re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", line)
    }
    fields = {"client_gone", "engine_error", "http_400", "max_tokens", "best_of", "read_on_s", "going_down"}
    assert len(names - fields) > 10
    assert [name for name in names - fields if f"def {name}(" not in there] == []

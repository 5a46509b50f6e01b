"""A running replica takes up what the registry and its file say, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving_adapter.adapters.registry_folder import RegistryBroken, RegistryFolder
from serving_adapter.command_line import main
from serving_adapter.serving import adapter_loading, adapter_trials
from serving_adapter.serving.adapter_loading import AdapterLoading
from serving_adapter.serving.adapter_settings import AdapterSettings
from serving_adapter.serving.adapter_trials import AdapterTrials
from tests.fixtures_adapter import Served, serving
from tests.lora_builders import lora

FR = ("--tenant", "tenant_a", "--name", "it", "--as", "ana")


@pytest.fixture(autouse=True)
def ends_are_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_loading, "DIES_WITHIN_S", 0.0)


@asynccontextmanager
async def loading(
    settings: AdapterSettings, root: Path, replica_id: str = "r1"
) -> AsyncIterator[tuple[Served, AdapterLoading]]:
    settings = msgspec.structs.replace(settings, registry=str(root), replica_id=replica_id)
    async with serving(settings) as served:
        served.replica.attach(served.engine)
        yield served, AdapterLoading(served.replica, lambda: served.app, served.app)


def register(root: Path, fill: int, *more: str) -> None:
    folder = lora(root.parent / f"upload-{fill}", fill=fill)
    assert main(["register", "--registry", str(root), str(folder), *FR, "--base", "tiny", *more]) == 0


def change(root: Path, verb: str, *more: str) -> None:
    assert main([verb, "--registry", str(root), *FR, *more]) == 0


def test_an_adapter_is_served_after_a_first_request_and_unloaded_once_nothing_of_it_runs(
    adapter_settings: AdapterSettings, tmp_path: Path
) -> None:
    root = tmp_path / "registry"
    request = {"model": "it", "prompt": "a b c", "max_tokens": 20, "stream": True}

    async def run() -> None:
        async with loading(adapter_settings, root) as (served, loader):
            await loader.look()
            assert (await served.ask(request)).status == 404
            register(root, 1)
            await loader.look()
            (version,) = RegistryFolder(root).read().versions
            assert served.engine.loras[version.engine] == str(RegistryFolder(root).files_of(version.engine))
            (smoke,) = await served.told()
            assert (smoke.tenant_id, smoke.purpose, smoke.adapter, smoke.output_tokens) == (
                "tenant_a",
                "smoke",
                "it",
                1,
            )
            assert RegistryFolder(root).statuses()[0].adapters[version.engine].state == "serving"
            assert (await served.ask(request, tenant="tenant_b")).status == 404
            served.engine.goes_on.clear()
            asked = asyncio.create_task(served.ask(request))
            while not served.replica.runs(version.engine):
                await asyncio.sleep(0.001)
            change(root, "remove")
            await loader.look()
            assert version.engine in served.engine.loras, "a request with it is still running"
            assert (await served.ask(request)).status == 404
            served.engine.goes_on.set()
            assert (await asked).body.count(b"data:") == 21
            event = (await served.told(2))[1]
            assert (event.adapter, event.adapter_revision, event.purpose) == ("it", version.revision, "tenant")
            await loader.look()
            assert version.engine not in served.engine.loras
            assert RegistryFolder(root).statuses()[0].adapters == {}

    asyncio.run(run())


def test_a_version_that_fails_is_told_to_its_tenant_and_the_others_go_on(
    adapter_settings: AdapterSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "registry"

    async def run() -> None:
        async with loading(adapter_settings, root) as (served, loader):
            register(root, 1)
            (bad,) = RegistryFolder(root).read().versions
            served.engine.broken.add(bad.engine)
            await loader.look()
            answer = await served.ask({"model": "it", "prompt": "a"})
            assert (answer.status, b"shapes do not fit" in answer.body) == (503, True)
            assert RegistryFolder(root).statuses()[0].adapters[bad.engine].why.endswith('"shapes do not fit"}}')
            assert "ALERT" in capsys.readouterr().err
            assert "tollbook_adapter_load_failures_total 1" in served.replica.metrics.page()
            register(root, 2, "--share", "50")
            await loader.look()
            for _ in range(8):  # all of them go to the version that works
                assert (await served.ask({"model": "it", "prompt": "a", "max_tokens": 1})).status == 200
            assert (await served.ask({"model": "fr", "prompt": "a", "max_tokens": 1})).status == 200

    asyncio.run(run())


def test_what_changes_while_an_adapter_is_loaded_is_taken_up_at_once(
    adapter_settings: AdapterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "registry"
    request = {"model": "it", "prompt": "a b c", "max_tokens": 1}
    monkeypatch.setattr(adapter_loading, "EACH_S", 0.02)

    async def run() -> None:
        at_load, goes_on = asyncio.Event(), asyncio.Event()
        async with loading(adapter_settings, root) as (served, _):

            async def slow(scope: Any, receive: Any, send: Any) -> None:
                if scope["path"] == adapter_loading.LOAD and served.engine.loras.keys() & {first.engine}:
                    at_load.set()
                    await goes_on.wait()
                await served.app(scope, receive, send)

            loader = AdapterLoading(served.replica, lambda: slow, served.app)
            register(root, 1)
            (first,) = RegistryFolder(root).read().versions
            await loader.look()
            assert (await served.ask(request)).status == 200
            register(root, 2)
            keeping = asyncio.create_task(loader.keep())
            await at_load.wait()
            change(root, "remove")
            async with asyncio.timeout(60):
                while (await served.ask(request)).status != 404:
                    await asyncio.sleep(0.01)
                assert first.engine in served.engine.loras
                goes_on.set()
                while RegistryFolder(root).statuses()[0].adapters:
                    await asyncio.sleep(0.01)
            assert set(served.engine.loras) == {"tenant_a--fr--1", "tenant_b--law--1"}, "both were unloaded"
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    asyncio.run(run())


def states(root: Path, engine: str) -> dict[str, str]:
    """By replica."""
    return {each.replica_id: each.adapters[engine].state for each in RegistryFolder(root).statuses()}


def test_an_adapter_that_ends_its_engine_is_tried_by_one_replica_once(
    adapter_settings: AdapterSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "registry"
    register(root, 1)
    (deadly,) = RegistryFolder(root).read().versions

    async def run() -> None:
        async with (
            loading(adapter_settings, root) as (first, loader),
            loading(adapter_settings, root, "r2") as (
                second,
                waiting,
            ),
        ):
            at_load = asyncio.Event()
            app = first.app

            async def hangs(scope: Any, receive: Any, send: Any) -> None:
                at_load.set()
                await asyncio.Event().wait()

            first.app = hangs  # type: ignore[assignment]
            trying = asyncio.create_task(loader.look())
            await at_load.wait()
            await waiting.look()
            assert states(root, deadly.engine) == {"r1": "trying", "r2": "waiting"}
            answer = await second.ask({"model": "it", "prompt": "a"})
            assert (answer.status, b"r1 tries it first" in answer.body) == (503, True)
            app.state.engine_client.dead = True
            trying.cancel()  # as a server does whose engine has ended
            await asyncio.gather(trying, return_exceptions=True)
        async with (
            loading(adapter_settings, root) as (again, loader),
            loading(adapter_settings, root, "r2") as (
                second,
                waiting,
            ),
        ):
            for look in (loader, waiting, loader, waiting):
                await look.look()
            assert states(root, deadly.engine) == {"r1": "died", "r2": "died"}
            assert deadly.engine not in {**again.engine.loras, **second.engine.loras}
            assert (await again.ask({"model": "it", "prompt": "a"})).status == 503
            assert (await again.ask({"model": "fr", "prompt": "a", "max_tokens": 1})).status == 200
            assert capsys.readouterr().err.count("ALERT") == 2
            change(root, "remove")
            register(root, 1)
            for look in (loader, waiting):
                await look.look()
            assert states(root, deadly.engine) == {"r1": "serving", "r2": "serving"}, "a person had it tried again"

    asyncio.run(run())


def test_an_engine_that_says_that_it_died_of_an_adapter_is_believed(
    adapter_settings: AdapterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "registry"
    register(root, 1)
    (deadly,) = RegistryFolder(root).read().versions

    async def run() -> None:
        async with loading(adapter_settings, root) as (served, loader):
            served.engine.deadly.add(deadly.engine)
            await loader.look()
            assert states(root, deadly.engine) == {"r1": "died"}
        monkeypatch.setattr(adapter_loading, "ANSWERED_WITHIN_S", 0.01)
        async with loading(adapter_settings, root, "r2") as (served, loader):

            async def hangs(scope: Any, receive: Any, send: Any) -> None:
                await asyncio.Event().wait()

            app, served.app = served.app, hangs  # type: ignore[assignment]
            change(root, "remove")
            register(root, 1)
            await loader.look()
            assert states(root, deadly.engine)["r2"] == "died"
            served.app = app

    asyncio.run(run())


def test_who_waits_for_a_replica_that_is_gone_tries_in_the_end_and_a_third_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "registry"
    root.mkdir()
    first, second, third = (AdapterTrials(RegistryFolder(root), f"r{n}", "b", lambda: "now") for n in (1, 2, 3))
    assert first.may_try("x", None) is None
    waits = second.may_try("x", None)
    assert waits is not None
    assert (waits.state, waits.why) == ("waiting", "r1 tries it first")
    monkeypatch.setattr(adapter_trials, "FIRST_WITHIN_S", 0.0)
    assert second.may_try("x", waits) is None
    refused = third.may_try("x", None)
    assert refused is not None
    assert (refused.state, "2 replicas tried it" in refused.why) == ("died", True)
    second.served("x")
    assert third.may_try("x", None) is None
    (root / "trials" / "y.json").touch()  # whoever made it ended before it wrote
    assert first.may_try("y", None) is not None
    assert first.may_try("y", None) is None


def test_a_replica_is_not_ready_before_it_has_read_its_registry_once(
    adapter_settings: AdapterSettings, tmp_path: Path
) -> None:
    root = tmp_path / "registry"
    register(root, 1)
    whole = (root / "registry.json").read_bytes()

    async def run() -> None:
        async with loading(adapter_settings, root) as (served, loader):

            async def statuses() -> list[int]:
                asked = [await served.ask({"model": name, "prompt": "a", "max_tokens": 1}) for name in ("it", "tiny")]
                pages = [await served.ask(b"", path, method="GET") for path in ("/v1/models", "/health")]
                return [answer.status for answer in (*asked, *pages)]

            (root / "registry.json").write_bytes(whole[:30])
            for _ in range(2):
                with pytest.raises(RegistryBroken):
                    await loader.look()
                assert await statuses() == [503] * 4
            (root / "registry.json").write_bytes(whole)
            await loader.look()
            assert await statuses() == [200] * 4
            (root / "registry.json").write_bytes(whole[:30])
            with pytest.raises(RegistryBroken):
                await loader.look()
            assert await statuses() == [200] * 4, "what was known stays"

    asyncio.run(run())


def test_the_file_is_read_again_and_one_that_cannot_be_used_changes_nothing(
    adapter_settings: AdapterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "adapter.toml"
    plain: dict[str, Any] = {"spool": {"folder": adapter_settings.spool.folder}, "salt_key": "x", "gateway_keys": "x"}

    def write(models: str) -> None:
        head = "".join(f"{name} = {value!r}\n" for name, value in plain.items() if name != "spool")
        file.write_text(f'{head}[spool]\nfolder = "x"\n[rules.models]\n{models}\n')

    write('tiny = [{ engine = "tiny" }]')
    monkeypatch.setenv("TOLLBOOK_ADAPTER_CONFIG", str(file))

    async def run() -> None:
        async with serving(adapter_settings) as served:
            loader = AdapterLoading(served.replica, lambda: served.app, served.app)
            write('tiny = [{ engine = "tiny" }]\nquick = [{ engine = "tiny" }]')
            await loader.look()
            assert (await served.ask({"model": "quick", "prompt": "a"})).status == 200
            write("quick = [")
            keeping = asyncio.create_task(loader.keep())
            await asyncio.sleep(0.05)
            assert (await served.ask({"model": "quick", "prompt": "a"})).status == 200
            keeping.cancel()

    asyncio.run(run())

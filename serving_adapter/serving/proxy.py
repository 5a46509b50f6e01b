"""`tollbook-adapter proxy`: the middleware in a server of its own, before an engine that may not be touched.

Needs `tollbook-adapter[proxy]`.
"""

from __future__ import annotations

import sys

import uvicorn

from serving_adapter.engine.stream_counting import StreamCounting
from serving_adapter.engine.token_check import TokenCheck
from serving_adapter.engine.upstream import Upstream
from serving_adapter.errors import AdapterError
from serving_adapter.serving.adapter_settings import AdapterSettings, read_key
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from serving_adapter.settings import SettingsError


class ProxyFailed(AdapterError):
    """The proxy's server did not start."""


def proxy_server(settings: AdapterSettings) -> uvicorn.Server:
    """A server that is ready to serve. Raises SettingsError, SpoolFailed."""
    section = settings.proxy
    if section is None:
        raise SettingsError("the adapter's file has no [proxy] (docs/adapter.md)")
    key = read_key(section.upstream_key) if section.upstream_key else None
    check = TokenCheck(section.tokenizer) if section.tokenizer else None
    engine = StreamCounting(
        Upstream(section.upstream, key), continuous=section.continuous_usage, check=check, read_on_s=section.read_on_s
    )
    replica = Replica(settings, engine_fields=section.engine_fields)
    replica.metrics.beside.append(engine.checks.page)
    app = Middleware(engine, replica, hooked=False)
    host, _, port = section.listen.rpartition(":")
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=int(port),
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, int(section.drain_s)),
        )
    )


def run_proxy() -> None:
    """Serve until SIGTERM. Raises SettingsError, SpoolFailed, ProxyFailed."""
    settings = AdapterSettings.from_environment()
    server = proxy_server(settings)
    assert settings.proxy is not None
    print(f"metering {settings.proxy.upstream} at {settings.proxy.listen}", file=sys.stderr, flush=True)
    server.run()
    if not server.started:
        raise ProxyFailed(f"cannot listen at {settings.proxy.listen}")

"""`tollbook-adapter`: what runs beside a replica, for an environment with nothing but this distribution.

`tollbook adapter …` has the same commands, and more to show for people.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from serving_adapter.adapters import commands
from serving_adapter.engine.gpu_reports import VARIABLE as GPU_SOCKET
from serving_adapter.errors import AdapterError
from serving_adapter.probe import Agreed, Probe
from serving_adapter.report_sender import ReportSender
from serving_adapter.scrape import Scraper, Target, keep_scraping
from serving_adapter.serving.adapter_settings import PROBE, AdapterSettings, metrics_secret, read_gateway_keys, read_key
from serving_adapter.settings import KafkaSettings, SettingsError
from serving_adapter.shipping.archive import Archive
from serving_adapter.shipping.poison import listed, resend
from serving_adapter.shipping.shipper import Producers, Shipper, keep_shipping
from serving_adapter.shipping.shipping_figures import serve
from serving_adapter.shipping.spool_status import spool_status
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 1 where something is refused, 2 for wrong use."""
    parser = argparse.ArgumentParser(prog="tollbook-adapter", description="What runs beside a serving replica.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    ship = verbs.add_parser("ship", help="send a spool's events to Kafka, and recover what killed replicas left open")
    ship.add_argument("--spool", type=Path, required=True)
    ship.add_argument("--archive", help="a folder, or s3://BUCKET/PREFIX")
    ship.add_argument("--once", action="store_true")
    ship.add_argument("--metrics", type=int, metavar="PORT", help="figures at /metrics, and /health, at this port")
    ship.add_argument("--dev", action="store_true", help="accept a topic with a single copy")
    spool = verbs.add_parser("spool", help="what lies in a spool, as JSON")
    spool.add_argument("--spool", type=Path, required=True)
    aside = verbs.add_parser("poison", help="events that Kafka would never take: list them as JSON, or send them again")
    aside.add_argument("what", choices=("list", "resend"))
    aside.add_argument("--spool", type=Path, required=not os.environ.get("TOLLBOOK_SPOOL"),
                       default=os.environ.get("TOLLBOOK_SPOOL"))  # fmt: skip
    scrape = verbs.add_parser("scrape", help="send an engine's own counters to Kafka")
    scrape.add_argument("--url", required=True)
    scrape.add_argument("--replica", required=True)
    scrape.add_argument("--boot")
    scrape.add_argument("--interval", type=float, default=15.0)
    verbs.add_parser("proxy", help="meter an engine that may not be touched; TOLLBOOK_ADAPTER_CONFIG names the file")
    probe = verbs.add_parser("probe", help="known requests: do answers, events and the engine's counters agree?")
    probe.add_argument("--url", default="http://127.0.0.1:8000")
    probe.add_argument("--model", help="the tenants' name of a model; the first of the adapter's file without it")
    probe.add_argument("--no-cut", action="store_true", help="leave no stream in its midst: for counting from answers")
    commands.add_verbs(verbs)
    given = parser.parse_args(arguments)
    try:
        if given.verb == "ship":
            _ship(given)
        elif given.verb == "spool":
            print(json.dumps([dataclasses.asdict(found) for found in spool_status(given.spool)]))
        elif given.verb == "poison":
            return _poison(given)
        elif given.verb in commands.VERBS:
            commands.run(given)
        elif given.verb == "probe":
            agreed = _probe(given)
            counted = f"{agreed.prompt} prompt and {agreed.generated} generated tokens"
            if agreed.by_engine:
                print(f"all agree: {counted}")
            else:
                print(
                    f"answers and events agree: {counted}; the engine's page has no counters that are known: no third"
                )
        elif given.verb == "proxy":
            _proxy()
        else:
            sender = ReportSender(KafkaSettings.from_environment())
            scraper = Scraper(Target(given.url, given.replica, given.boot, metrics_secret()), sender.send)
            return 0 if keep_scraping(scraper, told_to_stop(), given.interval, say=_say) else 1
    except AdapterError as error:
        _say(f"Error: {error}")
        return 1
    return 0


def _ship(given: argparse.Namespace) -> None:
    kafka = KafkaSettings.from_environment()
    require_fit(kafka, USAGE, development=given.dev)
    producers = Producers(kafka)
    shipper = Shipper(given.spool, producers, archive=Archive.at(given.archive) if given.archive else None, say=_say)
    if given.once:
        print(f"{shipper.ship()} events shipped")
    else:
        if given.metrics is not None:
            serve(shipper.figures, given.metrics)
        keep_shipping(shipper, producers, told_to_stop(), _say)


def _poison(given: argparse.Namespace) -> int:
    """1 where Kafka still does not take something."""
    if given.what == "list":
        found = [each._asdict() | {"event": each.event.decode("utf-8", "replace")} for each in listed(given.spool)]
        print(json.dumps(found, indent=1))
        return 0
    sent, reasons = resend(given.spool, Producers(KafkaSettings.from_environment()).usage())
    print(f"{sent} events sent")
    for reason in sorted(set(reasons)):
        _say(f"{reasons.count(reason)} events stay: {reason}")
    return 1 if reasons else 0


def _proxy() -> None:
    try:
        from serving_adapter.serving.proxy import run_proxy  # its server is an extra
    except ModuleNotFoundError as error:
        raise SettingsError(f"the proxy needs {error.name}: pip install 'tollbook-adapter[proxy]'") from None
    run_proxy()


def _probe(given: argparse.Namespace) -> Agreed:
    settings = AdapterSettings.from_environment()
    if settings.probe_key is not None:
        key_id, key = PROBE, read_key(settings.probe_key)
    elif settings.gateway_keys is not None:
        key_id, key = next(iter(read_gateway_keys(settings.gateway_keys).items()))
    else:
        raise SettingsError(
            "a probe signs with probe_key, or one of gateway_keys, and the adapter's file names neither"
        )
    secret = read_key(settings.metrics_secret) if settings.metrics_secret else None
    model = given.model or next(iter(settings.rules.models))
    gpu = bool(os.environ.get(GPU_SOCKET)) and settings.proxy is None
    return Probe(
        given.url.rstrip("/"),
        model,
        key_id,
        key,
        secret,
        cut=not given.no_cut,
        gpu=gpu,
        within=settings.proxy is None,
        tell=settings.ready_after_probe,
    ).run()


def told_to_stop() -> threading.Event:
    """Set on SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    return stop


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

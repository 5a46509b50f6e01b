"""`tollbook adapter`: what runs beside a serving replica."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from console import session
from console.output import AsCsv, AsJson, document, err, listing, out
from console.session import Dev
from serving_adapter import command_line
from serving_adapter.adapters.commands import VERBS
from serving_adapter.replica_reports import EngineModel
from serving_adapter.report_sender import ReportSender
from serving_adapter.scrape import Scraper, Target, keep_scraping
from serving_adapter.serving.adapter_settings import metrics_secret
from serving_adapter.settings import SettingsError
from serving_adapter.shipping.archive import Archive
from serving_adapter.shipping.shipper import Producers, Shipper, keep_shipping
from serving_adapter.shipping.shipping_figures import serve
from serving_adapter.shipping.spool_status import BootStatus, spool_status
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import USAGE

app = typer.Typer(help="What runs beside a serving replica.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """What runs beside a serving replica."""


@app.command()
def scrape(
    url: Annotated[str, typer.Option(help="The engine's metrics, e.g. http://127.0.0.1:8000/metrics.")],
    replica: Annotated[str, typer.Option(help="The replica's id, as in its events.")],
    boot: Annotated[
        str | None, typer.Option(help="The boot the counters belong to; else the page's tollbook_boot_info says it.")
    ] = None,
    interval: Annotated[float, typer.Option(min=1, max=3600, help="Seconds between two scrapes.")] = 15.0,
    once: Annotated[bool, typer.Option("--once", help="Scrape once and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read an engine's own counters and send them to the replicas' topic, until SIGTERM or Ctrl-C; then a last time.

    A process of its own: what it says does not come from the adapter, whose events are compared with it.
    """
    if as_json and not once:
        raise typer.BadParameter("--json is for --once")
    try:
        target = Target(url, replica, boot, metrics_secret())
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    scraper = Scraper(target, ReportSender(session.kafka()).send)
    if once:
        report = scraper.scrape()
        if as_json:
            document(
                {"replica_id": report.replica_id, "boot_id": report.boot_id, "at": report.at, "since": report.since,
                 "from_zero": report.from_zero, "models": [_model(model) for model in report.models]}
            )  # fmt: skip
        else:
            out.print(f"{len(report.models)} models of boot {report.boot_id}, counting since {report.since}")
        return
    stop = command_line.told_to_stop()
    if not keep_scraping(scraper, stop, interval, say=lambda text: err.print(text, soft_wrap=True)):
        raise typer.Exit(1)


SpoolFolder = Annotated[
    Path, typer.Option("--spool", envvar="TOLLBOOK_SPOOL", file_okay=False, help="The spool's folder.")
]


@app.command()
def ship(
    spool: SpoolFolder,
    archive: Annotated[
        str | None,
        typer.Option(help="Where segments go that are shipped: a folder, or s3://BUCKET/PREFIX; else they stay."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Ship what is there, and end.")] = False,
    metrics: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Figures at /metrics, and /health, at this port.")
    ] = None,
    dev: Dev = False,
) -> None:
    """Send a spool's events to Kafka, until SIGTERM or Ctrl-C; recover what killed replicas left open.

    One process beside each replica. Killed at any time, it goes on where Kafka's last acknowledgement was.
    """
    kafka = session.kafka()
    require_fit(kafka, USAGE, development=dev)
    producers = Producers(kafka)

    def say(text: str) -> None:
        err.print(text, soft_wrap=True)

    shipper = Shipper(spool, producers, archive=Archive.at(archive) if archive else None, say=say)
    if once:
        out.print(f"{shipper.ship()} events shipped")
    else:
        if metrics is not None:
            serve(shipper.figures, metrics)
        keep_shipping(shipper, producers, command_line.told_to_stop(), say)


@app.command()
def spool(folder: SpoolFolder, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """What lies in a spool, boot by boot, and how much of it Kafka has. Changes nothing."""
    rows = [dataclasses.asdict(found) for found in spool_status(folder)]
    listing(
        rows, [field.name for field in dataclasses.fields(BootStatus)], as_json=as_json, as_csv=as_csv,
        empty=f"no boot in {folder}",
    )  # fmt: skip


def _same_as_adapters_own(verb: str, told: str) -> None:
    """A verb of `tollbook-adapter`, which runs where this command line is not installed: one implementation."""

    @app.command(
        verb, help=told, add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )  # fmt: skip
    def run(context: typer.Context) -> None:
        raise typer.Exit(command_line.main([verb, *context.args]))


_same_as_adapters_own("proxy", "Meter an engine that may not be touched; TOLLBOOK_ADAPTER_CONFIG names the file.")
_same_as_adapters_own("poison", "Events that Kafka would never take: list them, or send them again (resend).")
_same_as_adapters_own("probe", "Known requests: do answers, events and the engine's own counters agree?")
for _verb, _told in VERBS.items():
    _same_as_adapters_own(_verb, f"{_told[:1].upper()}{_told[1:]}.")


def _model(model: EngineModel) -> dict[str, object]:
    return {name: getattr(model, name) for name in model.__struct_fields__}

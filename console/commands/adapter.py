"""`tollbook adapter`: what runs beside a serving replica."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from console import session
from console.output import AsJson, document, err, out
from serving_adapter.replica_reports import EngineModel
from serving_adapter.scrape import Delivery, Scraper, Target, keep_scraping
from serving_adapter.settings import SettingsError

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
        target = Target(url, replica, boot)
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None
    scraper = Scraper(target, Delivery(session.kafka()).send)
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
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    if not keep_scraping(scraper, stop, interval, say=lambda text: err.print(text, soft_wrap=True)):
        raise typer.Exit(1)


def _model(model: EngineModel) -> dict[str, object]:
    return {name: getattr(model, name) for name in model.__struct_fields__}

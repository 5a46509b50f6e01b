"""`tollbook dev`: local services and traffic."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from console import session
from console.output import err
from devstack.commands import devstack_app as app
from devstack.traffic import azure_hour
from serving_adapter import ingest
from serving_adapter.producer import EventProducer
from serving_adapter.topics import USAGE


@app.command()
def traffic(
    dirty: Annotated[bool, typer.Option("--dirty", help="With duplicates, late events, and 40 bad messages.")] = False,
    send: Annotated[bool, typer.Option("--send", help="Send to Kafka instead of printing.")] = False,
) -> None:
    """A real hour of LLM traffic across the end of October 2026, as usage events."""
    lines = azure_hour.lines(dirty=dirty)
    if not send:
        try:
            for line in lines:
                print(line)
        except BrokenPipeError:
            sys.stderr.close()
        return
    kafka = session.kafka()
    producer = EventProducer(kafka, USAGE.name(kafka.topic_prefix))
    result = ingest.ingest_raw(io.BytesIO("\n".join(lines).encode()), producer)
    err.print(f"{result.sent:,} messages sent to {producer.topic}")

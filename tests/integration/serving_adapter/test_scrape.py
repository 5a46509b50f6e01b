"""The scraper over real HTTP: what it reads, what it refuses within its bounds, and how it keeps on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from serving_adapter import scrape
from serving_adapter.errors import BadMetrics, BootUnknown, DeliveryFailed, EngineUnreachable
from serving_adapter.replica_reports import EngineCounters, decode, encode
from serving_adapter.scrape import Scraper, Target, fetch, keep_scraping
from serving_adapter.settings import SettingsError
from tests.fake_engine import FakeEngine, FakeServer, serving


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeEngine()) as started:
        yield started


class Kafka:
    """Where reports go; it may refuse some of them."""

    def __init__(self) -> None:
        self.reports: list[EngineCounters] = []
        self.refuses = 0
        self.enough = threading.Event()
        self.wanted = 0

    def send(self, report: EngineCounters) -> None:
        if self.refuses:
            self.refuses -= 1
            raise DeliveryFailed("no answer")
        assert decode(encode(report)) == report
        self.reports.append(report)
        if len(self.reports) >= self.wanted:
            self.enough.set()


def test_a_scrape_says_what_the_engine_counted_and_for_which_boot(server: FakeServer) -> None:
    assert server.engine is not None
    server.engine.serve(45, 8, 32)
    kafka = Kafka()
    report = Scraper(Target(server.url, "r1"), kafka.send).scrape()
    assert kafka.reports == [report]
    assert (report.replica_id, report.boot_id, report.since) == ("r1", "b1", "2026-11-01T12:00:00.250000+00:00")
    (model,) = report.models
    assert (model.prompt_tokens, model.generation_tokens, model.cached_tokens) == (45, 8, 32)
    assert Scraper(Target(server.url, "r1", "given"), kafka.send).scrape().boot_id == "given"


def test_a_restart_and_a_reset_begin_new_runs(server: FakeServer) -> None:
    kafka = Kafka()
    scraper = Scraper(Target(server.url, "r1", "b1"), kafka.send)
    assert server.engine is not None
    server.engine.serve(45, 8)
    scraper.scrape()
    server.engine = FakeEngine(started=1793538000.0, boot="b2")
    server.engine.serve(100, 50)
    scraper.scrape()
    server.engine = FakeEngine(started=1793538000.0, boot="b2")
    scraper.scrape()
    _, restarted, reset = kafka.reports
    assert restarted.since == "2026-11-01T13:00:00+00:00"
    assert reset.since == reset.at
    assert [report.from_zero for report in kafka.reports] == [True, True, True]


def test_a_page_without_a_boot_needs_to_be_told(server: FakeServer) -> None:
    server.engine = FakeEngine(boot=None)
    with pytest.raises(BootUnknown, match="--boot"):
        Scraper(Target(server.url, "r1"), Kafka().send).scrape()


def says(status: int, body: bytes, *headers: tuple[str, str]) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for header in headers:
            handler.send_header(*header)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (says(500, b"", ("Content-Length", "0")), "answers 500"),
        (says(307, b"", ("Content-Length", "0"), ("Location", "http://127.0.0.1:9/")), "answers 307"),
        (says(200, b"vllm:prompt_tokens_total 1\n", ("Content-Length", "99")), "breaks off"),
        (says(200, b"vllm:prompt_tokens_total 1\n"), "how long"),
        (says(200, b"x" * 2000, ("Content-Length", "2000")), "more than 1,000 bytes"),
    ],
)
def test_an_answer_that_is_not_a_whole_page_is_refused(
    server: FakeServer, answer: Callable[[BaseHTTPRequestHandler], None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "MOST_BYTES", 1000)
    server.answer = answer
    with pytest.raises(EngineUnreachable, match=told):
        fetch(server.url)


def test_a_page_that_is_not_utf8_is_refused(server: FakeServer) -> None:
    server.answer = says(200, b"\xff\n", ("Content-Length", "2"))
    with pytest.raises(BadMetrics, match="UTF-8"):
        fetch(server.url)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_an_answer_that_drips_is_given_up(server: FakeServer, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "ANSWER_WITHIN_S", 0.3)
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        start = b"HTTP/1.0 200 OK\r\n" + (b"" if where == "headers" else b"Content-Length: 100000\r\n\r\n")
        handler.wfile.write(start)
        while not over.wait(0.05):
            try:
                handler.wfile.write(b"a")
                handler.wfile.flush()
            except OSError:
                return

    server.answer = drip
    try:
        with pytest.raises(EngineUnreachable):
            fetch(server.url)
    finally:
        over.set()


def test_nobody_there_is_said_with_the_address() -> None:
    with pytest.raises(EngineUnreachable, match=r"http://127\.0\.0\.1:9/metrics cannot be read"):
        fetch("http://127.0.0.1:9/metrics")


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "file:///etc/passwd", "http://", "http://h:0x/", "http://u:p@h/"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="--url"):
        Target(url, "r1")


def test_it_keeps_on_over_failures_says_them_once_and_scrapes_a_last_time(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "FIRST_RETRY_S", 0.01)
    kafka, said, stop = Kafka(), list[str](), threading.Event()
    kafka.refuses, kafka.wanted = 3, 3
    done = list[bool]()
    scraper = Scraper(Target(server.url, "r1"), kafka.send)
    thread = threading.Thread(target=lambda: done.append(keep_scraping(scraper, stop, 0.02, said.append)))
    thread.start()
    assert kafka.enough.wait(60)
    assert server.engine is not None
    server.engine.serve(7, 7)
    before = len(kafka.reports)
    stop.set()
    thread.join(60)
    assert done == [True]
    assert said == ["no answer; trying again", "scraping again after 3 failures"]
    assert len(kafka.reports) > before
    assert kafka.reports[-1].models[0].prompt_tokens == 7


def test_a_last_scrape_that_fails_is_said(server: FakeServer) -> None:
    server.engine = None
    stop, said = threading.Event(), list[str]()
    stop.set()
    assert not keep_scraping(Scraper(Target(server.url, "r1"), Kafka().send), stop, 15, said.append)
    assert said == [f"the last scrape failed: {server.url} answers 404, expected 200"]

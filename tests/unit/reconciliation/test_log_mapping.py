"""How a line of somebody else's log becomes an event, or is named with what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reconciliation.errors import MappingInvalid
from reconciliation.replay.log_mapping import LogMapping
from reconciliation.replay.log_source import logged, mapping_of
from reconciliation.replay.material import Found, NotMappable, Wanted
from serving_adapter.events import completed_at, decode
from streams.ingest.dry_run import Fate
from tests.builders import event_json

EXAMPLES = Path(__file__).parents[3] / "docs" / "mappings"
MAPPING = """\
log: gateway
fields:
  tenant_id: {from: who.tenant}
  request_id: id
  model: model
  input_tokens: tokens_in
  output_tokens: tokens_out
  timestamp: {from: ended, as: epoch_s}
  status: {from: code, values: {"200": ok, "499": aborted}, otherwise: error}
where: {path: [/v1/completions]}
"""
LINE: dict[str, Any] = {
    "who": {"tenant": "a"}, "id": "q1", "model": "llama", "tokens_in": 7, "tokens_out": "3", "ended": 1791979200.123456,
    "code": 200, "path": "/v1/completions",
}  # fmt: skip


def mapping(text: str = MAPPING) -> LogMapping:
    return mapping_of(text, "m.yaml")


def test_a_line_becomes_the_event_that_it_tells_of() -> None:
    event = decode(mapping().event_of(LINE))
    assert (event.tenant_id, event.request_id, event.input_tokens, event.output_tokens) == ("a", "q1", 7, 3)
    assert (event.status, event.usage_source) == ("ok", "gateway")
    assert completed_at(event).isoformat() == "2026-10-14T12:00:00.123456+00:00"
    assert decode(mapping().event_of(LINE | {"code": 503})).status == "error"


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"id": "-"}, "request_id: the line has no id"), ({"tokens_in": "many"}, "input_tokens: 'many' is not a whole"),
     ({"tokens_in": 7.5}, "input_tokens: 7.5 is not a whole"),
     ({"ended": "noon"}, "timestamp: 'noon' is not epoch_s"), ({"who": {"tenant": "not valid"}}, "tenant_id")],
)  # fmt: skip
def test_a_line_that_cannot_be_an_event_names_field_and_reason(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        mapping().event_of(LINE | changed)


@pytest.mark.parametrize(
    ("form", "value", "at"),
    [("epoch_ms", 1791979200123, "2026-10-14T12:00:00.123000+00:00"),
     ("rfc3339", "2026-10-14T14:00:00.5+02:00", "2026-10-14T12:00:00.500000+00:00"),
     ("%d/%b/%Y:%H:%M:%S %z", "14/Oct/2026:12:00:00 +0000", "2026-10-14T12:00:00+00:00"),
     ("%Y-%m-%d %H:%M:%S", "2026-10-14 12:00:00", "2026-10-14T12:00:00+00:00")],
)  # fmt: skip
def test_times_come_in_many_forms(form: str, value: object, at: str) -> None:
    made = mapping(MAPPING.replace("as: epoch_s", f'as: "{form}"'))
    assert completed_at(decode(made.event_of(LINE | {"ended": value}))).isoformat() == at


@pytest.mark.parametrize(
    ("text", "told"),
    [("log: x\nfields: {}\n", "nothing says what tenant_id is"), (MAPPING + "colour: red\n", "colour"),
     (MAPPING.replace("model: model", "modell: model"), "modell is no field"), ("{", "no YAML")],
)  # fmt: skip
def test_a_mapping_that_says_too_little_is_refused(text: str, told: str) -> None:
    with pytest.raises(MappingInvalid, match=told):
        mapping(text)


def test_a_log_is_read_line_by_line_and_what_is_no_event_is_named(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    lines = [json.dumps(LINE), "[" * 100_000, json.dumps(LINE | {"path": "/health"}), json.dumps(LINE | {"id": "-"})]
    log.write_text("\n".join(lines) + "\n")
    found = list(logged(str(log), mapping()))
    assert [(type(each), each.origin) for each in found] == [
        (Found, "access.log:1"), (NotMappable, "access.log:2"), (NotMappable, "access.log:4")
    ]  # fmt: skip


def test_a_csv_has_its_names_in_its_first_line(tmp_path: Path) -> None:
    text = MAPPING.replace("log: gateway", "log: gateway\nformat: csv\ndelimiter: ';'").replace("who.tenant", "who")
    (tmp_path / "a.csv").write_text("id;who;model;tokens_in;tokens_out;ended;code;path\n")
    with (tmp_path / "a.csv").open("a") as file:
        file.write("q1;a;llama;7;3;1791979200;200;/v1/completions\nq2;too;few\n")
    first, second = logged(str(tmp_path / "a.csv"), mapping(text))
    assert isinstance(first, Found)
    assert decode(first.message).request_id == "q1"
    assert isinstance(second, NotMappable)


def test_only_what_is_wanted_of_the_material_is_taken() -> None:
    wanted = Wanted(begin=completed_at(decode(event_json())), tenants=frozenset({"tenant_1"}))
    found = [
        Found(name, event_json(**changed))
        for name, changed in (
            ("kept", {}), ("early", {"timestamp": "2026-11-01T10:00:30Z"}), ("other", {"tenant_id": "tenant_2"})
        )
    ]  # fmt: skip
    unread = [Found("torn", b"{"), NotMappable("line", "why", b"")]
    assert [each.origin for each in wanted.of([*found, *unread])] == ["kept", "torn", "line"]


@pytest.mark.parametrize("name", ["envoy", "nginx", "litellm"])
def test_the_examples_read_the_lines_they_show(name: str) -> None:
    text = (EXAMPLES / f"{name}.yaml").read_text()
    made = mapping(text)
    shown = [line[4:] for line in text.splitlines() if line.startswith("#   ") and line[4] != " "]
    lines = iter(enumerate((line.encode() for line in shown), start=1))
    rows = [row for _, _, row in made.rows(lines)]
    assert rows
    for row in rows:
        assert not isinstance(row, str)
        assert made.concerns(row)
        assert decode(made.event_of(row)).usage_source == "gateway"


def test_only_what_changes_anything_is_applied() -> None:
    assert [fate for fate in Fate if fate.changes] == [Fate.ADD, Fate.SUPERSEDE, Fate.FILL]

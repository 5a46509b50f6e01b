"""What a forger could do to an evidence pack, and which comparison finds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from reconciliation.close.evidence.verifying import verify_evidence
from reconciliation.errors import EvidenceBroken

Change = Callable[[str], str]
"""What a forger makes of a file."""


def edited(change: Callable[[Any], Any]) -> Change:
    """Each line of JSON as `change` leaves it."""

    def forged(text: str) -> str:
        lines = [json.loads(line) for line in text.splitlines()]
        for each in lines:
            change(each)
        return "".join(json.dumps(each, sort_keys=True, separators=(",", ":")) + "\n" for each in lines)

    return forged


def usage_added(account: Any) -> None:
    account["tenants"][0]["usage"][0]["output_tokens"] += 1


def rated_for_seven(account: Any) -> None:
    account["tenants"][0]["rated_lines"][0]["amount"] = "7"


def legs_doubled(line: Any) -> None:
    for leg in line.get("entry", {}).get("legs", ()):
        leg["amount"] = str(2 * Decimal(leg["amount"]))


def last_entry_left_out(text: str) -> str:
    """The chain is whole, and ends earlier."""
    *lines, _, _ = text.splitlines(keepends=True)
    last = json.loads(lines[-1])
    return "".join(lines) + json.dumps({"entries": last["position"], "chain_hash": last["chain_hash"]}) + "\n"


def another_invoice(text: str) -> str:
    """It adds up, and nobody approved it."""
    (line,) = text.splitlines()
    return f"{line}\n{json.dumps(json.loads(line) | {'invoice_id': 'f' * 8})}\n"


def waived_by_bob(result: Any) -> None:
    for each in result["differences"]:
        each["waived_by"] = "bob"


def a_note_nobody_booked(text: str) -> str:
    note = {"invoice_id": "f" * 8, "kind": "credit_note", "legal_entity": "default", "number": None, "credits": [],
            "total": -1, "net": -1, "tax": [], "currency": "USD", "service_end": "2026-11-01T00:00:00Z",
            "period": "2026-10", "credits_invoice": None}  # fmt: skip
    return text + json.dumps(note) + "\n"


NUMBERED = "numbers are those of the documents"
IN_STRIPE, BESIDE = "Stripe's invoices are the documents", "registers are what the rest says"
AS_APPROVED = "invoices are what was approved"
FORGERIES: Final[tuple[tuple[str, Change, str], ...]] = (
    # a file of the content, what is done to it, a comparison that finds it though the manifest was forged as well
    *(
        ("accounts.jsonl", edited(usage_added), check)
        for check in ("contents are what was signed", "frozen usage is that of its cut", "rated again",
                      "tables are those of the accounts")
    ),
    *(
        ("accounts.jsonl", edited(rated_for_seven), check)
        for check in ("contents are what was signed", "rated again", "rated lines are drafted",
                      "rated lines are accrued", "tables are those of the accounts")
    ),
    ("accounts.jsonl", lambda text: "", "contents are what was signed"),
    ("accounts.jsonl", lambda text: text * 2, "contents are what was signed"),
    ("usage.csv", lambda text: text.replace(",3000,", ",3001,"), "tables are those of the accounts"),
    ("usage.csv", lambda text: text + text.splitlines()[1] + "\n", "tables are those of the accounts"),
    ("rated_lines.csv", lambda text: text.replace(",USD,", ",EUR,"), "tables are those of the accounts"),
    ("trial_balance.csv", lambda text: text.replace(",1150,", ",1151,"), "the trial balance is the journal's"),
    ("journal-default.jsonl", edited(legs_doubled), "the journal's chain is whole"),
    ("journal-default.jsonl", last_entry_left_out, "journals end where their books were closed"),
    ("invoices.jsonl", edited(lambda invoice: invoice.update(net=invoice["net"] + 1)), AS_APPROVED),
    ("invoices.jsonl", edited(lambda invoice: invoice.update(amount_due=0)), AS_APPROVED),
    ("invoices.jsonl", lambda text: "", AS_APPROVED),
    ("invoices.jsonl", lambda text: text * 2, AS_APPROVED),
    ("invoices.jsonl", another_invoice, AS_APPROVED),
    ("gates.jsonl", edited(waived_by_bob), "what is waived has its waiver"),
    ("waivers.jsonl", lambda text: "", "what is waived has its waiver"),
    ("stripe.jsonl", edited(lambda found: found.update(total=1)), IN_STRIPE),
    ("stripe.jsonl", edited(lambda found: found.get("lines", {"data": [0]})["data"].pop()), IN_STRIPE),
    ("stripe.jsonl", edited(lambda found: found.update(metadata={})), IN_STRIPE),
    ("stripe.jsonl", lambda text: "", IN_STRIPE),
    ("documents.jsonl", a_note_nobody_booked, "documents are booked"),
    ("invoices.jsonl", lambda text: "", "documents are booked"),
    ("registers/late_usage.csv", lambda text: text + "acme\n", BESIDE),
    ("registers/credit_notes.csv", lambda text: text + "default\n", BESIDE),
    ("registers/disputes.csv", lambda text: text + "default\n", BESIDE),
    ("registers/manual_journals.csv", lambda text: text.replace(",100,", ",101,"), BESIDE),
    ("registers/manual_journals.csv", lambda text: text.replace(",bob", ","), BESIDE),
    ("registers/unbillable_usage.csv", lambda text: text + "acme\n", BESIDE),
    ("registers/movements.csv", lambda text: text.replace(",USD,0,", ",USD,1,"), "movements are as explained"),
    ("registers/number_series.csv", lambda text: text.splitlines(keepends=True)[0], NUMBERED),
    ("registers/number_series.csv", lambda text: text + text.splitlines(keepends=True)[1], NUMBERED),
    ("../renderings/summary.html", lambda text: text.replace("1 billing account", "2 billing account"),
     "the page says what the content says"),
    ("../signatures/approvals.jsonl", lambda text: "", "contents are what was signed"),
)  # fmt: skip
AS_SIGNED: Final = "issued documents are as signed"
OF_REOPENED: Final[tuple[tuple[str, Change, str], ...]] = (
    ("signed_before.jsonl", edited(lambda account: account["documents"][0].update(total=1)), AS_SIGNED),
    ("signed_before.jsonl", lambda text: "", AS_SIGNED),
    ("invoices.jsonl", edited(lambda invoice: invoice.update(due_date="2027-01-02")), AS_SIGNED),
    ("registers/since_signed.csv", lambda text: text.replace("/requests,", "/input_tokens,"), BESIDE),
)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken(folder: Path, kept: str | None = None) -> set[str]:
    return {check.name for check in verify_evidence(folder, manifest=kept) if check.differences}


def assert_forgery_is_found(folder: Path, kept: str, forgeries: Iterable[tuple[str, Change, str]] = FORGERIES) -> None:
    """Each file that is changed is found by the manifest; with the manifest forged as well, by what it says, and by the
    manifest's hash that somebody has `kept`."""
    missed = []
    for name, change, found in forgeries:
        file, whole = folder / "content" / name, files(folder)
        file.write_text(change(file.read_text()))
        of_content = ".." not in name
        assert not of_content or broken(folder) == {"files are those of the manifest"}
        manifest = forge_manifest(folder / "content")
        assert not of_content or broken(folder) == {"files are those of the manifest"}
        (folder / "signatures/manifest.sha256").write_text(manifest)
        if found not in broken(folder):
            missed.append((name, found))
        assert not of_content or broken(folder, kept) == {"files are those of the manifest"}
        for path, data in whole.items():
            (folder / path).write_bytes(data)
    assert missed == []
    assert broken(folder, kept) == set()
    for name in ("approvals.jsonl", "transitions.jsonl", "manifest.sha256"):
        (folder / "signatures" / name).rename(folder / "kept")
        with pytest.raises(EvidenceBroken, match=name):
            verify_evidence(folder)
        (folder / "kept").rename(folder / "signatures" / name)


def forge_manifest(content: Path) -> str:
    """Have the manifest name the files as they are; its own hash."""
    said = json.loads((content / "manifest.json").read_text())
    for each in said["files"]:
        each["sha256"] = hashlib.sha256((content / each["file"]).read_bytes()).hexdigest()
    (content / "manifest.json").write_text(json.dumps(said))
    return hashlib.sha256((content / "manifest.json").read_bytes()).hexdigest()

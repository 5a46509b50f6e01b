"""Disputes as they came in, and their evidence: a folder of files made from usage, and its submission to Stripe."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from billing.commands.explain_invoice import export_billed_events
from billing.commands.show_invoices import invoice_document
from billing.database import raw, transaction
from billing.errors import CorrectionRefused, UnknownCurrency
from billing.invoicing import correction_store
from billing.invoicing.correcting import Correction, CorrectionKind, CorrectionState
from billing.money import currency, plain
from billing.periods import rfc3339
from billing.posting.stripe_money import major
from billing.presentation.dispute_evidence import COLUMNS, DailyUsage, evidence_texts
from billing.stripe import standing_store
from billing.stripe.standing_store import KnownDispute
from billing.usage.usage_digest import event_of_line
from streams import audit
from streams.retention.archive_files import Archive

OPEN = ("needs_response", "warning_needs_response")


@dataclass(frozen=True, slots=True)
class EvidenceWritten:
    """What was written where: file → SHA-256; `texts` is what is submitted."""

    folder: Path
    files: dict[str, str]
    texts: dict[str, str]


def dispute_list(engine: Engine) -> list[dict[str, Any]]:
    """All disputes that came in, the newest first.

    `amount` is a string in major units, None of a currency that we have no row for; `stripe_amount` Stripe's integer.
    """
    with transaction(engine) as connection:
        return [_document(known) for known in standing_store.disputes(connection)]


def dispute_document(engine: Engine, dispute_id: str) -> dict[str, Any]:
    """One dispute, with the number of its invoice and what was submitted. Raises UnknownDispute."""
    with transaction(engine) as connection:
        (known,) = standing_store.disputes(connection, dispute_id=dispute_id)
        submitted = (
            []
            if known.invoice_id is None
            else correction_store.listed(connection, invoice_ids=[known.invoice_id], kind=CorrectionKind.EVIDENCE)
        )
    sent = [
        {"correction": each.correction_no, "state": each.state.value, "by": each.made_by}
        for each in submitted
        if each.content["dispute"] == dispute_id
    ]
    return _document(known) | {"evidence": sent}


def write_evidence(
    engine: Engine, open_archive: Callable[[], Archive], dispute_id: str, folder: Path
) -> EvidenceWritten:
    """Write a dispute's evidence: the invoice, its usage by day, every request it bills, the texts, and a manifest.

    The same again writes the same. Raises UnknownDispute, CorrectionRefused where its invoice is none of ours.
    """
    dispute = dispute_document(engine, dispute_id)
    if dispute["invoice_id"] is None:
        raise CorrectionRefused(f"dispute {dispute_id} is of a payment that is for no invoice of ours")
    invoice, days = invoice_document(engine, dispute["invoice_id"]), DailyUsage()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "requests.jsonl").open("wb") as requests:

        def write(line: bytes) -> None:
            days.add(event_of_line(line, 0))
            requests.write(line)

        export_billed_events(engine, open_archive, dispute["invoice_id"], write)
    with (folder / "usage_by_day.csv").open("w", newline="", encoding="utf-8") as table:
        rows = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(days.rows)
    texts = evidence_texts(invoice, days.rows)
    for name, content in (("dispute.json", dispute), ("invoice.json", invoice), ("evidence.json", texts)):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    names = ("dispute.json", "evidence.json", "invoice.json", "requests.jsonl", "usage_by_day.csv")
    files = {name: _sha256(folder / name) for name in names}
    manifest = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    (folder / "SHA256SUMS").write_text(manifest, encoding="utf-8")
    return EvidenceWritten(folder, files, texts)


def submit_evidence(
    engine: Engine, dispute_id: str, texts: dict[str, str], *, actor: str, dry_run: bool = False
) -> Correction:
    """Have a dispute's evidence submitted to the bank, once: `send_corrections` sends it. Raises CorrectionRefused."""
    with transaction(engine, dry_run=dry_run) as connection:
        (known,) = standing_store.disputes(connection, dispute_id=dispute_id)
        if known.invoice_id is None or known.dispute.status not in OPEN:
            raise CorrectionRefused(f"dispute {dispute_id} is {known.dispute.status}: evidence is not taken any more")
        before = correction_store.listed(connection, invoice_ids=[known.invoice_id], kind=CorrectionKind.EVIDENCE)
        for each in before:
            if each.content["dispute"] == dispute_id and each.state is not CorrectionState.REFUSED:
                return each
        content = {"dispute": dispute_id, "evidence": texts}
        made = correction_store.add(
            connection, known.invoice_id, CorrectionKind.EVIDENCE, reason="evidence", actor=actor, content=content
        )
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
        detail = {"correction": made.correction_no, "sha256": digest}
        audit.record(raw(connection), actor, "dispute.evidence", dispute_id, detail)
        return made


def _document(known: KnownDispute) -> dict[str, Any]:
    found = known.dispute
    amount = None
    with suppress(UnknownCurrency):
        amount = plain(major(found.amount, currency(found.currency, found.created_at.date())))
    return {
        "dispute_id": found.dispute_id,
        "status": found.status,
        "reason": found.reason,
        "amount": amount,
        "stripe_amount": found.amount,
        "currency": found.currency,
        "billing_account": known.billing_account,
        "invoice_id": known.invoice_id and str(known.invoice_id),
        "charge_id": found.charge_id,
        "created_at": rfc3339(found.created_at),
        "evidence_due_at": found.evidence_due_at and rfc3339(found.evidence_due_at),
        "submissions": found.submissions,
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()

"""Ways to damage a closed month between any two stages, each of one row, by who owns the tables and can do it.

Drawn up from docs/spec/money.md 11, docs/spec/metering.md and the tables alone, by somebody who had not read the gates.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from billing.invoicing.invoices import InvoiceIdentity, InvoiceKind
from reconciliation.close.gates.gate import Gate
from tests.billing_builders import OCTOBER


class Sql(str):
    """What a gate must name, as an expression over the row as it was before it was damaged."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Damage:
    """One row deleted, doubled or altered; whose money it is; the gate that must turn red, and what it must name.

    `row`: the condition by which it is found.
    """

    table: str
    operation: str
    column: str
    statement: str
    costs: str
    gate: Gate | None
    names: str = ""
    row: str = ""


def is_named(name: str, told: str) -> bool:
    """Whether what a gate told has a name in it, as a whole: `row 1` is not in `row 10`."""
    before, after = r"(?<![\w-])" if name[0].isalnum() else "", r"(?![\w-])" if name[-1].isalnum() else ""
    return re.search(f"{before}{re.escape(name)}{after}", told) is not None


def _one(table: str, where: str) -> str:
    return f"(tableoid, ctid) = (select tableoid, ctid from {table} where {where} order by tableoid, ctid limit 1)"


def delete_row(table: str, row: str, costs: str, gate: Gate | None, names: str = "") -> Damage:
    """A row is gone."""
    return Damage(table, "delete", "", f"delete from {table} where {row}", costs, gate, names, row)


def double_row(table: str, row: str, changed: dict[str, Any], costs: str, gate: Gate | None, names: str = "") -> Damage:
    """A row is there twice, but for its key."""
    statement = (
        f"insert into {table} overriding system value select made.* from (select * from {table} where"
        f" {row}) as found, jsonb_populate_record(found::{table}, '{json.dumps(changed)}') as made"
    )
    return Damage(table, "double", ", ".join(changed), statement, costs, gate, names, row)


def alter_row(table: str, row: str, column: str, value: str, costs: str, gate: Gate | None, names: str = "") -> Damage:
    """A column of a row has another value."""
    return Damage(table, "alter", column, f"update {table} set {column} = {value} where {row}", costs, gate, names, row)


def delete(table: str, where: str, costs: str, gate: Gate | None, names: str = "") -> Damage:
    """The first of some rows is gone."""
    return delete_row(table, _one(table, where), costs, gate, names)


def double(table: str, where: str, changed: dict[str, Any], costs: str, gate: Gate | None, names: str = "") -> Damage:
    """The first of some rows is there twice."""
    return double_row(table, _one(table, where), changed, costs, gate, names)


def alter(table: str, where: str, column: str, value: str, costs: str, gate: Gate | None, names: str = "") -> Damage:
    """A column of the first of some rows has another value."""
    return alter_row(table, _one(table, where), column, value, costs, gate, names)


def in_twin(operation: str, kind: str, changed: dict[str, Any], costs: str, gate: Gate, names: str) -> Damage:
    """The same of Stripe's own record: its largest object of a kind. One that is doubled has another id."""
    largest = (
        f"(select seq from objects where type = '{kind}' and deleted = 0 and account = :account"
        " order by json_extract(body, '$.total') desc, seq limit 1)"
    )
    values = "".join(f", '$.{name}', {value!r}" for name, value in changed.items())
    body = f"json_set(body{values})"
    statement = {
        "delete": f"update objects set deleted = 1 where seq = {largest}",
        "double": "insert into objects (account, type, id, created, body) select account, type,"
                  f" '{changed.get('id')}', created, {body} from objects where seq = {largest}",
        "alter": f"update objects set body = {body} where seq = {largest}",
    }[operation]  # fmt: skip
    told = f"{kind} {', '.join(changed)}".strip()
    return Damage(TWIN, operation, told, statement, costs, gate, names, f"seq = {largest}")


TOLD: Final = r"(\d+) faults injected, (\d+) caught by a gate that names the row"
"""The last line that the test prints, for `make simulate`."""
TWIN: Final = "Stripe"
ACME_INVOICE: Final = str(InvoiceIdentity("default", "acme", InvoiceKind.USAGE, OCTOBER, "USD").invoice_id)
EVENTS, CHUNKS = "usage.events", "usage.applied_chunks"
HOURS, MINUTES, IDENTITIES = "usage.windows_1h", "usage.windows_1m", "usage.event_identities"
FROZEN, CUTS, RATED = "ledger.frozen_usage", "ledger.close_cuts", "ledger.rated_lines"
POSTINGS, ENTRIES, SEALED = "ledger.postings", "ledger.journal_entries", "ledger.sealed_entries"
INVOICES, LINES, TAXES, NUMBERS = (
    "ledger.invoices", "ledger.invoice_lines", "ledger.invoice_taxes", "ledger.issued_numbers",
)  # fmt: skip
MOVEMENTS, MOVED = "ledger.credit_movements", "ledger.stripe_balance_transactions"
GRANTS: Final = "ledger.credit_grants"
REQUEST: Final = "request_id = 'req-2'"
ACME: Final = "tenant_id = 'acme'"
OUT: Final = "tenant_id = 'acme' and metric = 'output'"
OF_ACME: Final = "billing_account = 'acme'"
LINE: Final = f"metric = 'output' and invoice_id in (select invoice_id from {INVOICES} where {OF_ACME})"
THE_ENTRY: Final = (
    f"kind = 'invoice' and source->>'invoice_id' = (select invoice_id::text from {INVOICES} where {OF_ACME})"
)
ON_1150: Final = (
    f"entry_id in (select entry_id from {ENTRIES} where kind = 'accrual') and account_id ="
    " (select account_id from ledger.accounts where code = 1150 and subledger = 'acme')"
)
BETAS: Final = "(select account_id from ledger.accounts where code = 1150 and subledger = 'beta')"
ON_2200: Final = "account_id in (select account_id from ledger.accounts where code = 2200)"
REVENUE: Final = "(select account_id from ledger.accounts where code = 4000 and currency = 'USD')"
AGAIN: Final = {"rated_line_no": 9999, "rating_no": 9}

MOVEMENT: Final = Sql("'acme/' || grant_id || '/' || kind || ' ' || movement_no")
NUMBER: Final = Sql("legal_entity || '/' || series || '/' || number")
SNAPSHOT: Final = "default"
BILLED_LINE: Final = "acme/acme/p/v1/out/0/usage/0.002/metric=output"


def window(measure: str, *, model: str = "model", region: str = "region") -> Sql:
    """A measure of a row of windows, and when that begins."""
    columns = ("tenant_id", model, "adapter", region, "tier", "status", "fault", "usage_source", "rating_band")
    at = 'to_char(bucket, \'YYYY-MM-DD"T"HH24:MI:SS"Z"\')'
    return Sql(f"concat_ws('/', {', '.join(columns)}, '{measure} at ' || {at})")


DAMAGES: Final = (
    # Kafka → events
    delete(EVENTS, REQUEST, "a billed request can be shown to nobody", Gate.R1,
           Sql("source || '@' || position || '/event'")),
    double(EVENTS, REQUEST, {}, "a request is billed twice", Gate.R2, "acme/event req-2#1"),
    alter(EVENTS, REQUEST, "output_tokens", "output_tokens + 1", "tokens that nobody got", Gate.R2,
          "acme/event req-2#1/output_tokens"),
    alter(EVENTS, REQUEST, "cache_hit_tokens", "input_tokens", "the cached price for all", Gate.R2,
          "acme/event req-2#1/cache_hit_tokens"),
    alter(EVENTS, REQUEST, "tenant_id", "'beta'", "one tenant pays for another", Gate.R2,
          "beta/event req-2#1/tenant_id"),
    alter(EVENTS, REQUEST, "completed_at", "completed_at + interval '1 hour'", "the price of another hour", Gate.R2,
          "acme/event req-2#1/completed_at"),
    alter(EVENTS, REQUEST, "status", "'error'", "it goes free", Gate.R2, "acme/event req-2#1/status"),
    alter(EVENTS, REQUEST, "purpose", "'probe'", "it goes free", Gate.R2, "acme/event req-2#1/purpose"),
    alter(EVENTS, REQUEST, "attempt", "2", "another attempt bills", Gate.R2, "acme/event req-2#2/attempt"),
    alter(EVENTS, REQUEST, "request_id", "'req-1'", "another's request is passed over", Gate.R2,
          "acme/event req-1#1/request_id"),
    alter(EVENTS, REQUEST, "rating_band", "'x'", "another step's price", Gate.R2,
          "acme/llama////ok/none/engine/x/requests"),
    alter(EVENTS, REQUEST, "raw", "'torn'", "in a dispute nothing can be shown", Gate.R2, "acme/event req-2#1"),
    delete(CHUNKS, "true", "what was lost there is never missed", Gate.R1,
           Sql("source || '@' || next_position")),
    double(CHUNKS, "true", {"first_position": 1000, "next_position": 1004}, "events that never came", Gate.R1,
           Sql("source || '@1000'")),
    alter(CHUNKS, "applied > 0", "(applied, late, duplicates)", "(applied - 1, 0, duplicates + 1)",
          "a lost event passes for a duplicate", Gate.R1,
          Sql("source || '/events'")),
    alter("usage.sources", "next_position > 0", "next_position", "next_position + 1", "a message is never read",
          Gate.R1, Sql("source")),
    delete("usage.quarantine", "true", "refused usage is gone", Gate.R1,
           Sql("source || '/quarantine'")),
    # events → windows
    delete(HOURS, ACME, "an hour costs nothing", Gate.R2, window("output_tokens")),
    double(HOURS, ACME, {"model": "other"}, "an hour is billed twice", Gate.R2,
           window("output_tokens", model="'other'")),
    alter(HOURS, ACME, "output_tokens", "output_tokens + 1", "tokens that nobody got", Gate.R2,
          window("output_tokens")),
    alter(MINUTES, ACME, "requests", "requests + 1", "a request that nobody made", Gate.R2,
          window("requests")),
    # windows → frozen usage
    delete(FROZEN, ACME, "what was rated from cannot be shown", Gate.R2,
           "acme/1/v1/llama////ok/none/engine/output_tokens"),
    alter(FROZEN, ACME, "output_tokens", "output_tokens + 1", "tokens that nobody got", Gate.R2, "acme/cut 1/row 1"),
    alter(FROZEN, ACME, "tenant_id", "'beta'", "one tenant pays for another", Gate.R2, "beta/cut 1/row 1"),
    alter(CUTS, "true", "tenants", "array['acme']", "nobody compares beta's usage", Gate.R2,
          "beta/cut 1/not named"),
    alter(CUTS, "true", "coordinates", "coordinates || '{\"tax_rule_no\": 0}'", "cut by other tax rules", Gate.R2,
          "cut 1"),
    # frozen usage → rated lines
    delete(RATED, OUT, "usage costs nothing", Gate.R3, "acme/2026-10/out/std/amount"),
    double(RATED, OUT, AGAIN, "usage costs twice as much", Gate.R5A, BILLED_LINE),
    alter(RATED, OUT, "amount", "amount + 0.000000000001", "not what was agreed", Gate.R3,
          "acme/2026-10/out/std/amount"),
    alter(RATED, OUT, "quantity", "quantity + 1", "a token that nobody got", Gate.R3, "acme/2026-10/out/std/quantity"),
    alter(RATED, OUT, "unit_price", "unit_price * 2", "a price that nobody agreed to", Gate.R5A,
          BILLED_LINE),
    alter(RATED, OUT, "billing_account", "'beta'", "another pays", Gate.R5A,
          "beta/acme/p/v1/out/0/usage/0.002/metric=output"),
    alter(RATED, OUT, "tax_group", "'other'", "another tax", Gate.R3, "acme/2026-10/out/other/amount"),
    alter("ledger.plan_versions", "true", "content", "replace(content::text, '0.002', '0.003')::jsonb",
          "a price that nobody agreed to", Gate.R3, "acme/2026-10/out/std/amount"),
    alter("ledger.subscriptions", ACME, "billing_account", "'beta'", "another pays", Gate.R2, "acme/1/v1/payer"),
    # rated lines → ledger
    delete(POSTINGS, ON_1150, "a receivable is gone", Gate.R4, "1150/acme/USD"),
    double(POSTINGS, ON_1150, {"seq": 99}, "revenue twice", Gate.R4, "1150/acme/USD"),
    alter(POSTINGS, ON_1150, "amount", "amount + 0.01", "a cent from nowhere", Gate.R4, "1150/acme/USD"),
    alter(POSTINGS, ON_1150, "account_id", BETAS, "another owes it", Gate.R4, "1150/beta/USD"),
    alter(POSTINGS, ON_2200, "account_id", REVENUE, "tax becomes revenue", Gate.R4, "2200//USD"),
    alter(ENTRIES, "kind = 'accrual'", "accounting_period", "'2026-12'", "revenue of another month", Gate.R4,
          Sql("(source ->> 'tenant_id') || '/USD'")),
    alter(ENTRIES, THE_ENTRY, "source", "'{}'", "of which invoice, nobody knows", Gate.R5B, "1100/acme/USD"),
    alter("ledger.accounts", "code = 1150 and subledger = 'acme'", "subledger", "'other'", "another owes it", Gate.R4,
          "other/USD"),
    delete(SEALED, "true", "what was booked can be changed", Gate.R10,
           Sql("'number ' || position || ' of the chain is missing'")),
    alter("ledger.snapshot_balances", "true", "amount", "amount + 1", "a balance that was not", Gate.R10,
          SNAPSHOT),
    # rated lines → invoices
    delete(LINES, LINE, "usage is not billed", Gate.R5A, BILLED_LINE),
    double(LINES, LINE, {"line_key": "again"}, "usage is billed twice", Gate.R5A,
           BILLED_LINE),
    alter(LINES, LINE, "model", "'other'", "an invoice says another model", Gate.R5A,
          f"{BILLED_LINE}/model=other"),
    alter(LINES, LINE, "metric", "'input'", "an invoice says another metric", Gate.R5A,
          "acme/acme/p/v1/out/0/usage/0.002/metric=input"),
    alter(LINES, LINE, "amount_minor", "amount_minor + 1", "a cent too much", Gate.R5A, f"{ACME_INVOICE}/net"),
    alter(INVOICES, OF_ACME, "(net_minor, total_minor)", "(net_minor + 1, total_minor + 1)", "a cent too much",
          Gate.R5A, f"{ACME_INVOICE}/net"),
    alter(INVOICES, OF_ACME, "rounding", "rounding + 1", "a residue that was not", Gate.R8, f"{ACME_INVOICE}/rounding"),
    alter(INVOICES, OF_ACME, "number", "'INV-9'", "two documents of one number", Gate.R9,
          Sql(f"'default/invoice/' || (select n.number from {NUMBERS} as n where n.invoice_id = r.invoice_id)")),
    delete(TAXES, "true", "tax is not paid", Gate.R5A, Sql("invoice_id || '/tax'")),
    alter(TAXES, "true", "tax_minor", "tax_minor + 1", "a cent of tax too much", Gate.R5A,
          Sql("invoice_id || '/tax'")),
    delete(NUMBERS, "true", "an invoice that is in no register", Gate.R9, NUMBER),
    alter(NUMBERS, "true", "written", "'INV-99'", "the register has another number", Gate.R9, NUMBER),
    alter("ledger.number_series", "series = 'invoice'", "last_number", "last_number + 1", "a number that is missing",
          Gate.R9, "default/invoice/last"),
    # credits
    delete("ledger.invoice_credits", "true", "a credit pays nothing", Gate.R7,
           Sql("invoice_id || '/' || grant_id")),
    delete(MOVEMENTS, "kind = 'drawn'", "a credit is drawn twice", Gate.R7, MOVEMENT),
    double(MOVEMENTS, "kind = 'drawn'", {"movement_no": 999, "idempotency_key": "again"}, "a credit is used up",
           Gate.R7, Sql("'acme/' || grant_id || '/drawn 999'")),
    delete(MOVEMENTS, "kind = 'settled' and grant_id = 'kept'", "a paid credit is owed to nobody", Gate.R7,
           MOVEMENT),
    alter(GRANTS, "kind = 'paid'", "amount", "amount + 1", "a credit that nobody paid for", Gate.R7,
          Sql("'acme/' || grant_id || '/granted/amount'")),
    alter(GRANTS, "kind = 'promo'", "amount", "amount + 1", "a gift that nobody gave", Gate.R7,
          "acme/promo/granted/amount"),
    alter(GRANTS, "kind = 'promo'", "expires_at", "now()", "a gift is taken back", Gate.R7,
          "acme/promo/granted/expires_at"),
    delete(MOVEMENTS, "kind = 'drawn' and grant_id = 'promo'", "a gift is given twice", Gate.R7, MOVEMENT),
    alter("ledger.credit_register", "grant_id = 'promo'", "said", "said || '{\"amount\": 9}'",
          "a gift that nobody gave", Gate.R7, "acme/promo/granted/amount"),
    # invoices → Stripe, and back
    alter("ledger.stripe_requests", f"invoice_id in (select invoice_id from {INVOICES} where {OF_ACME})",
          "(replied_at, reply_id)", "(null, null)", "nobody knows whether it was billed", Gate.R9,
          Sql("'request/' || idempotency_key")),
    alter("ledger.stripe_events", "handled_at is not null", "(handled_at, outcome)", "(null, null)",
          "a payment that nobody saw", Gate.R9, Sql("'event/' || event_id")),
    alter(INVOICES, OF_ACME, "state", "'void'", "nobody collects it", Gate.R5B, Sql("stripe_invoice_id || '/status'")),
    alter(INVOICES, OF_ACME, "stripe_invoice_id", "'in_other'", "Stripe's is nobody's", Gate.R5B,
          Sql("stripe_invoice_id || ' (' || invoice_id || ')'")),
    delete(MOVED, "true", "a payment that was not booked", Gate.R6, Sql("transaction_id")),
    double(MOVED, "true", {"transaction_id": "txn_again"}, "a payment is booked twice", Gate.R6, "txn_again"),
    in_twin("alter", "invoice", {"total": 1}, "another total is collected", Gate.R5B,
            Sql("id || '/total'")),
    in_twin("alter", "invoiceitem", {"amount": 1}, "another amount is shown", Gate.R5B,
            Sql("json_extract(body, '$.invoice') || '/' || json_extract(body, '$.metadata.line_key')")),
    in_twin("delete", "invoice", {}, "nobody collects it", Gate.R5B,
            Sql("json_extract(body, '$.metadata.invoice_id')")),
    in_twin("double", "invoice", {"id": "in_again", "number": "AGAIN"}, "it is collected twice", Gate.R5B, "in_again"),
    in_twin("delete", "balance_transaction", {}, "a payment that never was", Gate.R6, Sql("id")),
    in_twin("double", "balance_transaction", {"id": "txn_again", "created": 1}, "a payment that is not booked", Gate.R6,
            "txn_again"),
    # What is kept beside the books
    alter(RATED, OUT, "metric", "'input'", "revenue by metric tells another", Gate.R3,
          "acme/2026-10/out/std/metric"),
    alter(RATED, OUT, "model", "'other'", "revenue by model tells another", Gate.R3,
          "acme/2026-10/out/std/model"),
    delete("ledger.tax_rules", "true", "the next invoice is without tax", Gate.R2,
           Sql("'acme/cut 1/tax rule ' || tax_rule_no")),
    delete("ledger.stripe_requests", f"invoice_id in (select invoice_id from {INVOICES} where {OF_ACME})",
           "what was sent cannot be shown", Gate.R9,
           Sql("invoice_id || '/' || step || '/' || chunk")),
    alter(MOVED, "true", "(amount, net)", "(amount + 1, net + 1)", "`stripe status` tells another balance", Gate.R6,
          Sql("transaction_id || '/kept'")),
    alter("ledger.usage_counts", ACME, "output_tokens", "output_tokens + 1", "the digest is not of the usage", Gate.R5A,
          f"{ACME_INVOICE}/usage digest"),
    delete("ledger.stripe_customers", OF_ACME, "the next invoice goes to another customer", Gate.R5B, "acme/customer"),
    # What no gate of the month sees (docs/close.md, "Gates")
    delete(IDENTITIES, "true", "sent again, it counts again", None),
    alter(CHUNKS, "true", "content_digest", "'\\x00'", "the proof is of other messages", None),
)  # fmt: skip

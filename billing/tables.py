"""The tables of schema `ledger`, for SQLAlchemy Core. Constraints and triggers: migrations/versions (0002, 0007, 0009).

Amounts are bare `numeric` (a domain with a check on the scale): they come and go as Decimal, never rounded.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
)
from sqlalchemy import Text as String
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

metadata = MetaData(schema="ledger")

_Time = DateTime(timezone=True)
_Uuid = UUID(as_uuid=True)


def _table(name: str, *columns: Column[object]) -> Table:
    return Table(name, metadata, *columns)


def _text(*names: str) -> list[Column[object]]:
    return [Column(name, String) for name in names]


def _times(*names: str) -> list[Column[object]]:
    return [Column(name, _Time) for name in names]


def _amounts(*names: str) -> list[Column[object]]:
    return [Column(name, Numeric(asdecimal=True)) for name in names]


def _bigints(*names: str) -> list[Column[object]]:
    return [Column(name, BigInteger) for name in names]


def _smallints(*names: str) -> list[Column[object]]:
    return [Column(name, SmallInteger) for name in names]


legal_entities = _table("legal_entities", *_text("legal_entity", "name", "functional_currency"))

billing_accounts = _table(
    "billing_accounts",
    *_text("billing_account", "legal_entity", "name", "currency", "rounding"),
    Column("payment_terms_days", Integer),
    *_times("recorded_at"),
)

parties = _table(
    "parties",
    *_bigints("party_no"),
    *_text("legal_entity", "billing_account", "recorded_by"),
    *_text("name", "street", "street_2", "postal_code", "city", "region", "country", "tax_id", "registration"),
    *_text("email", "iban", "bic", "purchase_order", "reference"),
    *_times("recorded_at"),
)

price_plans = _table(
    "price_plans",
    *_text("plan", "currency"),
    *_times("recorded_at"),
    Column("terms", JSONB),
)

plan_versions = _table(
    "plan_versions",
    *_bigints("plan_version_no"),
    *_text("plan", "version", "recorded_by"),
    *_times("valid_from", "recorded_at"),
    Column("content", JSONB),
)

subscriptions = _table(
    "subscriptions",
    *_bigints("subscription_row"),
    Column("subscription_id", _Uuid),
    *_text("tenant_id", "billing_account", "plan", "recorded_by"),
    *_times("starts_at", "ends_at", "recorded_at", "superseded_at", "trial_ends_at", "anchored_at"),
    Column("bill_statuses", ARRAY(String)),
    Column("terms", JSONB),
    Column("seats", Integer),
    Column("begins_plan", Boolean),
)

accounting_periods = _table("accounting_periods", *_text("legal_entity", "month", "state"))

currencies = _table("currencies", *_text("currency"), Column("since", Date), *_amounts("quantum"))

accounts = _table(
    "accounts",
    *_bigints("account_id"),
    *_text("legal_entity", "currency", "subledger"),
    *_smallints("code"),
    *_amounts("quantum"),
)

journal_entries = _table(
    "journal_entries",
    *_bigints("entry_id", "reverses"),
    *_text("idempotency_key", "kind", "legal_entity", "accounting_period", "original_period", "transaction_id"),
    Column("input_hash", LargeBinary),
    *_times("effective_at", "recorded_at"),
    *_smallints("legs"),
    Column("source", JSONB),
)

postings = _table(
    "postings",
    *_bigints("entry_id", "account_id"),
    *_smallints("seq"),
    *_text("currency"),
    *_amounts("amount"),
)

chart_of_accounts = _table(
    "chart_of_accounts",
    *_text("name", "type", "normal_side", "subledger"),
    *_smallints("code"),
    Column("in_quanta", Boolean),
)

seals = _table(
    "seals",
    *_text("legal_entity", "upto_transaction"),
    *_bigints("last_position", "upto_entry", "server"),
    Column("seal_no", Integer),
    Column("chain_hash", LargeBinary),
    *_times("sealed_at"),
)

sealed_entries = _table(
    "sealed_entries",
    *_bigints("entry_id", "position"),
    *_text("legal_entity"),
    Column("seal_no", Integer),
    Column("chain_hash", LargeBinary),
)

balance_snapshots = _table(
    "balance_snapshots",
    *_text("legal_entity"),
    Column("snapshot_no", Integer),
    Column("seal_no", Integer),
    *_times("effective_before", "taken_at"),
)

snapshot_balances = _table(
    "snapshot_balances",
    *_text("legal_entity"),
    Column("snapshot_no", Integer),
    *_bigints("account_id"),
    *_amounts("amount"),
)

tenant_periods = _table(
    "tenant_periods",
    *_text("tenant_id", "problem", "terms"),
    *_times("period_start", "period_end", "rated_at"),
    Column("rating_no", Integer),
)

rated_lines = _table(
    "rated_lines",
    *_bigints("rated_line_no", "entry_id"),
    *_text("tenant_id", "billing_account", "plan", "version", "charge_key", "kind", "metric"),
    *_text("model", "adapter", "region", "tier", "currency", "reason", "tax_group"),
    *_times("period_start", "period_end", "service_start", "service_end", "recorded_at", "accrued_to"),
    Column("rating_no", Integer),
    Column("subscription_id", _Uuid),
    *_smallints("segment_no", "tier_no"),
    *_amounts("unit_price", "quantity", "amount", "units", "free", "included"),
)

invoices = _table(
    "invoices",
    Column("invoice_id", _Uuid),
    Column("credits_invoice_id", _Uuid),
    *_text("legal_entity", "billing_account", "kind", "currency", "state", "lines_hash", "sending_step"),
    *_text("parked_because", "number", "stripe_customer_id", "stripe_invoice_id", "hosted_invoice_url"),
    *_text("invoice_pdf_url", "tax_mode"),
    *_times("service_start", "service_end", "drafted_at", "frozen_at", "frozen_recorded_at"),
    *_smallints("revision"),
    *_amounts("exact_total", "rounding"),
    *_bigints("net_minor", "tax_minor", "total_minor", "amount_due_minor", "entry_id"),
    Column("issue_date", Date),
    Column("due_date", Date),
)

invoice_lines = _table(
    "invoice_lines",
    Column("invoice_id", _Uuid),
    Column("subscription_id", _Uuid),
    *_text("line_key", "kind", "tenant_id", "plan", "version", "charge_key", "metric"),
    *_text("model", "adapter", "region", "tier", "tax_group"),
    *_smallints("segment_no", "tier_no"),
    *_times("service_start", "service_end", "original_start", "original_end"),
    *_amounts("unit_price", "quantity", "amount_exact", "units", "free", "included"),
    *_bigints("amount_minor"),
)

billed_coverables = _table(
    "billed_coverables",
    *_bigints("coverable_no"),
    Column("invoice_id", _Uuid),
    *_times("period_start", "period_end"),
    *_text("tax_group"),
    Column("content", JSONB),
)

usage_digests = _table(
    "usage_digests",
    Column("invoice_id", _Uuid),
    Column("digest", LargeBinary),
    Column("below", JSONB),
)

usage_counts = _table(
    "usage_counts",
    Column("invoice_id", _Uuid),
    *_text("tenant_id"),
    *_bigints("events", "requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us"),
    Column("root", LargeBinary),
)

passed_over_attempts = _table(
    "passed_over_attempts",
    Column("invoice_id", _Uuid),
    *_text("tenant_id", "request_id"),
    Column("attempt", Integer),
)

invoice_transitions = _table(
    "invoice_transitions",
    *_bigints("transition_no"),
    Column("invoice_id", _Uuid),
    *_text("from_state", "to_state", "actor"),
    *_times("at", "recorded_at"),
)

number_series = _table("number_series", *_text("legal_entity", "series", "prefix"), Column("last_number", Integer))

issued_numbers = _table(
    "issued_numbers",
    *_text("legal_entity", "series", "written"),
    Column("number", Integer),
    Column("invoice_id", _Uuid),
    *_times("issued_at"),
)

stripe_customers = _table(
    "stripe_customers",
    *_text("billing_account", "stripe_customer_id"),
    *_smallints("customer_no"),
    *_times("recorded_at"),
)

sending_restarts = _table(
    "sending_restarts",
    *_bigints("restart_no"),
    Column("invoice_id", _Uuid),
    *_text("stripe_invoice_id", "customer_gone", "number_gone", "number_taken_by", "reason", "actor"),
    *_times("recorded_at"),
)

stripe_requests = _table(
    "stripe_requests",
    *_text("idempotency_key", "billing_account", "step", "target", "parameters", "reply_id", "answer"),
    Column("invoice_id", _Uuid),
    *_smallints("chunk", "epoch"),
    *_times("frozen_at", "sent_at", "replied_at"),
)

stripe_events = _table(
    "stripe_events",
    *_text("event_id", "legal_entity", "type", "object_id", "body", "received_as", "outcome"),
    *_times("created_at", "received_at", "handled_at"),
)

stripe_balance_transactions = _table(
    "stripe_balance_transactions",
    *_text("transaction_id", "legal_entity", "reporting_category", "currency", "source_id", "stripe_customer_id"),
    *_bigints("amount", "fee", "net", "entry_id"),
    *_times("created_at", "recorded_at"),
)

corrections = _table(
    "corrections",
    *_bigints("correction_no", "entry_id"),
    Column("invoice_id", _Uuid),
    Column("note_id", _Uuid),
    *_text("kind", "reason", "made_by", "state", "told_because", "stripe_id"),
    Column("content", JSONB),
    *_times("made_at", "ended_at"),
)

stripe_standings = _table(
    "stripe_standings",
    Column("invoice_id", _Uuid),
    *_text("status"),
    *_bigints("amount_paid", "amount_remaining"),
    Column("attempts", Integer),
    *_times("next_attempt_at", "failed_at", "seen_at"),
)

stripe_disputes = _table(
    "stripe_disputes",
    *_text("dispute_id", "charge_id", "billing_account", "status", "reason", "currency"),
    Column("invoice_id", _Uuid),
    *_bigints("amount"),
    Column("submissions", Integer),
    *_times("created_at", "evidence_due_at", "seen_at"),
)

stripe_unbooked = _table("stripe_unbooked", *_text("transaction_id", "legal_entity", "because"), *_times("created_at"))

stripe_by_hand = _table(
    "stripe_by_hand",
    *_text("object_id", "kind"),
    Column("invoice_id", _Uuid),
    *_bigints("amount"),
    Column("over", Boolean),
    *_times("seen_at"),
)

stripe_account = _table(
    "stripe_account",
    *_text("legal_entity", "account_id", "shares_with"),
    Column("live", Boolean),
    *_times("kept_at"),
)

stripe_openings = _table("stripe_openings", *_text("legal_entity", "actor"), *_times("opens_at", "recorded_at"))

stripe_cursors = _table("stripe_cursors", *_text("legal_entity", "name"), *_times("read_to"))

stripe_passes = _table("stripe_passes", *_text("legal_entity", "name", "page_after"), *_times("newest"))

credit_grants = _table(
    "credit_grants",
    *_text("grant_id", "billing_account", "currency", "kind", "tax_treatment", "funding_invoice", "reason"),
    *_text("recorded_by"),
    *_amounts("amount"),
    Column("charges", ARRAY(String)),
    Column("models", ARRAY(String)),
    Column("fees", Boolean),
    Column("priority", Integer),
    *_times("effective_at", "expires_at", "granted_at", "recorded_at"),
)

credit_movements = _table(
    "credit_movements",
    *_bigints("movement_no", "entry_id"),
    *_text("idempotency_key", "grant_id", "kind", "reason", "recorded_by"),
    *_amounts("amount"),
    *_times("at", "recorded_at"),
    Column("invoice_id", _Uuid),
)

credit_register = _table(
    "credit_register",
    *_bigints("register_no", "movement_no"),
    *_text("grant_id"),
    Column("said", JSONB),
    *_times("at"),
)

tax_rules = _table(
    "tax_rules",
    *_bigints("tax_rule_no"),
    *_text("billing_account", "mode", "rounding", "evidence", "recorded_by"),
    Column("rates", JSONB),
    *_times("valid_from", "recorded_at"),
)

top_up_rules = _table(
    "top_up_rules",
    *_bigints("top_up_rule_no"),
    *_text("billing_account", "currency", "recorded_by"),
    *_amounts("below", "amount", "monthly_limit"),
    *_smallints("expires_months"),
    *_times("valid_from", "recorded_at"),
)

top_ups = _table("top_ups", *_text("grant_id"), *_bigints("top_up_rule_no"))

exchange_rates = _table(
    "exchange_rates",
    *_bigints("exchange_rate_no"),
    *_text("base", "quote", "document", "recorded_by"),
    *_amounts("rate"),
    *_times("valid_from", "recorded_at"),
)

breakage_estimates = _table(
    "breakage_estimates",
    *_bigints("breakage_estimate_no"),
    *_text("legal_entity", "document", "recorded_by"),
    *_amounts("share"),
    *_times("valid_from", "recorded_at"),
)

gpu_pool_versions = _table(
    "gpu_pool_versions",
    *_bigints("gpu_pool_version_no", "gpus"),
    *_text("pool", "currency", "recorded_by"),
    *_amounts("gpu_hour", "overhead_hour"),
    *_times("valid_from", "recorded_at"),
)

invoice_taxes = _table(
    "invoice_taxes",
    Column("invoice_id", _Uuid),
    *_text("tax_group"),
    *_amounts("rate"),
    *_bigints("base_minor", "tax_minor"),
)

invoice_credits = _table(
    "invoice_credits",
    Column("invoice_id", _Uuid),
    *_text("grant_id", "kind", "tax_treatment"),
    *_amounts("amount", "left_after"),
    *_bigints("amount_minor"),
)

invoice_carried = _table(
    "invoice_carried",
    Column("invoice_id", _Uuid),
    Column("carried_invoice_id", _Uuid),
    *_bigints("amount_minor"),
)

proposals = _table(
    "proposals",
    *_bigints("proposal_no"),
    *_text("kind", "subject", "document", "proposed_by"),
    Column("content", JSONB),
    *_times("proposed_at"),
)

late_cuts = _table(
    "late_cuts", *_bigints("late_cut_no"), *_times("period_start", "period_end", "recorded_at"), Column("below", JSONB)
)

settled_periods = _table("settled_periods", *_text("terms"), *_times("period_start", "period_end", "recorded_at"))

unbillable_usage = _table(
    "unbillable_usage",
    *_bigints("unbillable_no", "requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us"),
    *_text("tenant_id", "billing_account", "request_id", "kind", "model", "adapter", "region", "tier"),
    *_text("status", "fault", "usage_source", "rating_band"),
    Column("attempt", Integer),
    Column("correction_no", Integer),
    Column("horizon_days", Integer),
    *_times("completed_at", "billed_to", "recorded_at"),
)

unbillable_approvals = _table(
    "unbillable_approvals",
    *_bigints("unbillable_no"),
    *_text("approved_by", "reason"),
    *_times("approved_at"),
)

decisions = _table(
    "decisions",
    *_bigints("proposal_no", "entry_id"),
    Column("approved", Boolean),
    *_text("decided_by", "reason"),
    *_times("decided_at"),
)

close_transitions = _table(
    "close_transitions",
    *_bigints("transition_no"),
    *_text("month", "legal_entity", "billing_account", "from_state", "event", "to_state", "actor", "reason"),
    *_text("recorded_by"),
    Column("step", Integer),
    Column("detail", JSONB),
    *_times("at"),
)

close_cuts = _table(
    "close_cuts",
    *_bigints("cut_id"),
    *_text("month", "actor", "digest"),
    *_times("period_start", "period_end", "taken_at", "accrued_to"),
    Column("tenants", ARRAY(String)),
    Column("coordinates", JSONB),
)

frozen_usage = _table(
    "frozen_usage",
    *_bigints("cut_id", "requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us"),
    *_text("tenant_id", "billing_account", "plan", "version", "model", "adapter", "region", "tier", "status", "fault"),
    *_text("usage_source", "rating_band", "digest"),
    Column("row_no", Integer),
    Column("segment_no", Integer),
    *_times("service_start", "service_end"),
)

close_gate_results = _table(
    "close_gate_results",
    *_bigints("result_no", "compared"),
    *_text("month", "gate", "part"),
    Column("differences", JSONB),
    Column("shown", JSONB),
    *_times("at"),
)

close_stripe_objects = _table(
    "close_stripe_objects", *_bigints("object_no"), *_text("month", "kind", "stripe_id", "body"), *_times("at")
)

close_events = _table(
    "close_events",
    *_bigints("cut_id", "events"),
    *_text("tenant_id", "digest"),
    Column("body", LargeBinary),
    *_times("at"),
)

close_waivers = _table(
    "close_waivers",
    *_bigints("waiver_no"),
    *_text("month", "gate", "key", "seen_left", "seen_right", "actor", "reason", "currency"),
    *_amounts("low", "high"),
    *_times("at"),
)

close_contents = _table(
    "close_contents",
    *_bigints("content_no"),
    *_text("month", "billing_account", "content", "hash", "prepared_by"),
    *_times("at"),
)

close_approvals = _table(
    "close_approvals",
    *_bigints("approval_no", "content_no"),
    *_text("approved_by"),
    Column("alone", Boolean),
    *_times("at"),
)

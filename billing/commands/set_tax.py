"""Say how a billing account is taxed, from when on."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Engine

from billing.bills.tax import TaxMode
from billing.database import raw, transaction
from billing.errors import TaxRuleRefused
from billing.invoicing import billed_until_store, tax_store
from billing.invoicing.tax_store import DatedTaxRules
from billing.money import plain
from billing.periods import written
from billing.plans import account_store
from streams import audit

NEEDS_EVIDENCE = (TaxMode.EXEMPT, TaxMode.REVERSE_CHARGE)
TAXED = (TaxMode.EXCLUSIVE, TaxMode.INCLUSIVE)


def set_tax(engine: Engine, dated: DatedTaxRules, *, actor: str, dry_run: bool = False) -> bool:
    """Record tax rules from a moment on; False if they are what is recorded already. Raises TaxRuleRefused.

    They hold for invoices with a tax point from that moment on. What is frozen is never taxed anew.
    """
    check(dated)
    account = dated.billing_account
    with transaction(engine, dry_run=dry_run) as connection:
        if account not in account_store.accounts(connection, [account]):
            raise TaxRuleRefused(f"there is no billing account {account!r}")
        known = [each for each in tax_store.recorded(connection, [account]) if each.valid_from == dated.valid_from]
        if known and (known[-1].rules, known[-1].evidence) == (dated.rules, dated.evidence):
            return False
        taxed = billed_until_store.last_tax_point(connection, account)
        if taxed is not None and dated.valid_from <= taxed:
            raise TaxRuleRefused(
                f"an invoice of billing account {account} is taxed as of {written(taxed)}: tax rules can hold from"
                " later on"
            )
        tax_store.add(connection, dated, actor)
        detail = {
            "mode": dated.rules.mode.value,
            "rates": {group: plain(rate) for group, rate in dated.rules.rates.items()},
            "from": dated.valid_from.isoformat(),
            "evidence": dated.evidence,
        }
        audit.record(raw(connection), actor, "tax.set", account, detail)
    return True


def tax_rules(engine: Engine, *, account: str | None = None, as_of: datetime | None = None) -> list[DatedTaxRules]:
    """Everything that was recorded, or was by a moment."""
    with transaction(engine) as connection:
        return tax_store.recorded(connection, None if account is None else [account], as_of=as_of)


def check(dated: DatedTaxRules) -> None:
    """Raises TaxRuleRefused unless the rules say something whole."""
    rules = dated.rules
    if (rules.mode in TAXED) != bool(rules.rates):
        raise TaxRuleRefused(f"mode {rules.mode} {'needs' if rules.mode in TAXED else 'has no'} rates")
    if rules.mode in NEEDS_EVIDENCE and not dated.evidence.strip():
        raise TaxRuleRefused(f"mode {rules.mode} needs evidence: a certificate, or the payer's tax id")
    for group, rate in rules.rates.items():
        if not 0 <= rate < 1:
            raise TaxRuleRefused(f"a rate of {plain(rate)} for {group}: 0.19 stands for 19 %")

"""Errors of billing. Each carries its values and tells a person what to do.

BillingError
├── NotAnAmount, UnknownCurrency, CurrencyMismatch, UnknownTaxGroup     (money)
├── PeriodInvalid, PeriodNotEnded
├── PlanInvalid, PlanConflict, UnknownPlan, NoPriceVersion
├── SubscriptionRefused
├── UnknownCredit, CreditRefused, TaxRuleRefused, ProposalRefused
├── RateRefused, RateMissing                            (exchange rates)
├── Unratable
│   ├── NegativeUsage
│   ├── UsageUnavailable, UsageDisappeared
│   └── AmountTooLarge
├── EntryInvalid, IdempotencyConflict, AccountingPeriodClosed, JournalBroken, UnknownMoment  (journal)
├── IllegalTransition, UnknownInvoice, InvoiceFrozen, InvoiceAltered, CorrectionRefused, UnknownDispute
├── PartyRefused                                        (who is on a document)
├── PreviewRefused, EventsRefused, DocumentRefused      (invoices as files)
├── EventRefused, CashDiffers                           (a webhook; a cash balance)
├── ReportRefused                                       (what finance takes out)
└── StripeError                                        (see billing/stripe/stripe_gateway.py)
    ├── StripeAccessRefused    the key or its rights: stops everything
    │   └── OtherStripeAccount     a key of another account than the books follow
    ├── StripeRefused          a definite no: needs a person
    │   └── StripeRefusedBefore    not asked: a no of before, too short ago
    ├── StripeBusy             not done, try again: 429, or a request with this key is under way
    │   └── StripeLater        not asked: its key grows too old, and it is not looked up yet
    └── StripeOutcomeUnknown   it may have been done: send the same key and parameters again
        └── StripeServerError  5xx, which it may repeat for this key
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class BillingError(Exception):
    """Base of this folder's errors."""


class NotAnAmount(BillingError):
    """A value that is no exact decimal number, or has too many decimals."""


class UnknownCurrency(BillingError):
    """A currency that `billing/money.py` has no row for."""


class CurrencyMismatch(BillingError):
    """Two amounts that should be of one currency are not."""


class UnknownTaxGroup(BillingError):
    """A tax group that the payer's tax rules have no rate for."""


class PeriodInvalid(BillingError):
    """A text that names no billing period."""


class PeriodNotEnded(BillingError):
    """A period that cannot be billed yet."""


@dataclass(frozen=True, slots=True)
class PlanProblem:
    """What is wrong with a plan file: the line (from 1), the field (`versions[0].charges[2].price`), the reason."""

    line: int
    field: str
    reason: str

    def told(self, file: str) -> str:
        """In words, where it stands first."""
        return (
            f"{file}:{self.line}: {self.field}: {self.reason}" if self.field else f"{file}:{self.line}: {self.reason}"
        )


class PlanInvalid(BillingError):
    """A plan file that cannot be read. `problems` holds every one found."""

    def __init__(self, file: str, problems: Sequence[PlanProblem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.told(file) for problem in self.problems))


class PlanConflict(BillingError):
    """A plan version that is applied already with other content, or that does not fit beside those applied."""


class UnknownPlan(BillingError):
    """A plan that was never applied."""


class NoPriceVersion(BillingError):
    """A time at which a plan has no version yet."""


class SubscriptionRefused(BillingError):
    """A subscription that overlaps another, or does not fit its billing account."""


class UnknownCredit(BillingError):
    """A credit that was never granted."""


class CreditRefused(BillingError):
    """A credit that cannot be given so, or that cannot be drawn, voided, settled or refunded as it stands."""


class TaxRuleRefused(BillingError):
    """A tax rule that says nothing whole, or that would change what is invoiced already."""


class RateRefused(BillingError):
    """An exchange rate that says nothing, contradicts how its pair is kept, or would change a closed book."""


class PoolInvalid(BillingError):
    """A file about a pool of GPUs that cannot be read, with every problem by line and field."""


class PoolRefused(BillingError):
    """A pool that would change its currency."""


class RateMissing(BillingError):
    """A moment for which no exchange rate of a pair holds."""


class ProposalRefused(BillingError):
    """A proposal that does not exist, is decided already, is one's own, or can no longer be carried out."""


class Unratable(BillingError):
    """A tenant whose usage cannot be rated as it is. It is left out whole, by name; the others go on."""


class NegativeUsage(Unratable):
    """Sums of usage below zero: the windows are wrong, and nothing is rated from them."""


class UsageUnavailable(Unratable):
    """What a period is to be rated from is not there, or not in the state in which it can be rated."""


class UsageDisappeared(Unratable):
    """Usage that was billed and is not there any more, without a correction: nothing is given back by itself."""


class AmountTooLarge(Unratable):
    """Usage that comes to more than anybody pays: a price or a count is wrong."""


class EntryInvalid(BillingError):
    """A journal entry that is not balanced, or has a leg that its account does not take."""


class IdempotencyConflict(BillingError):
    """An idempotency key that was used before with other input."""


class AccountingPeriodClosed(BillingError):
    """A posting into an accounting period that is closed."""


class JournalBroken(BillingError):
    """A journal that is not what was sealed: an entry was changed, removed, added or moved past the guards."""


class UnknownMoment(BillingError):
    """A moment of booking that lies ahead, or a seal that does not exist: balances as of it may still change."""


class IllegalTransition(BillingError):
    """A change of state that the invoice's life does not have."""


class UnknownInvoice(BillingError):
    """An invoice that does not exist."""


class InvoiceFrozen(BillingError):
    """A change to what a frozen invoice says."""


class InvoiceAltered(BillingError):
    """A stored invoice that is not what it was when it was drawn up: somebody changed it in the database."""


class CorrectionRefused(BillingError):
    """Something that cannot be done to an invoice as it stands."""


class UnknownDispute(BillingError):
    """A dispute that we have not heard of."""


class PartyRefused(BillingError):
    """What cannot stand on a document about who invoices or pays; every field at fault is named."""


class PreviewRefused(BillingError):
    """An invoice that could not be drawn up by now; says what stands in the way."""


class EventsRefused(BillingError):
    """A list of billed events that cannot be read, is out of order, or has one twice."""


class DocumentRefused(BillingError):
    """A file that is no invoice document, or a document that cannot be made; the field is named."""


class EventRefused(BillingError):
    """A webhook that is not Stripe's: its signature, its age or its content."""


class MoneyNotBooked(BillingError):
    """What something rests on cannot be booked yet."""


class CashDiffers(BillingError):
    """A customer's cash balance in Stripe is not what the books have of it."""


class ReportRefused(BillingError):
    """A report that cannot be made as asked."""


class StripeError(BillingError):
    """Stripe did not do what was asked. `request_id` is Stripe's own, for its support."""

    def __init__(self, text: str, *, code: str = "", request_id: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.request_id = request_id


class StripeAccessRefused(StripeError):
    """Stripe does not accept the key, or the key may not do this."""


class OtherStripeAccount(StripeAccessRefused):
    """The key is of another account of Stripe's, or another mode, than the one that the books follow."""


class OpeningRefused(BillingError):
    """What was in Stripe before is said with the first run: money of the account is taken in already."""


class NoStripeAccount(BillingError):
    """A legal entity without a key of an account of Stripe's."""


class StripeRefused(StripeError):
    """A definite no to these parameters."""


class StripeRefusedBefore(StripeRefused):
    """A definite no of before: it is not asked again yet."""


class StripeBusy(StripeError):
    """Not done: too many requests, or one with the same key is under way."""


class StripeLater(StripeBusy):
    """Stripe is not asked for now: what a request has done must be over before it is looked up."""


class StripeOutcomeUnknown(StripeError):
    """No reply, or one that does not say whether it was done."""


class StripeServerError(StripeOutcomeUnknown):
    """Stripe answered 5xx. It may repeat that answer for the key as long as it remembers the key."""


def in_words(error: Exception) -> str:
    """What an error says; one that is none of ours with its type."""
    return str(error) if isinstance(error, BillingError) else f"{type(error).__name__}: {error}"

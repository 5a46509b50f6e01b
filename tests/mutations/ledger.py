"""Deliberate errors in the ledger: its database, its chain, its balances. Their tests need services."""

from __future__ import annotations

from typing import Final

from tests.mutations.mutation import Mutation

GUARDS: Final = "tests/integration/billing/test_journal_guards.py"
STORE: Final = "tests/integration/billing/test_ledger_store.py"
SEALS: Final = "tests/integration/billing/test_balances_and_seals.py"
LEDGER_0002: Final = "migrations/versions/0002_ledger.py"
BOOKS_0009: Final = "migrations/versions/0009_books.py"

MUTATIONS: Final = (
    Mutation(
        "the balance is summed over all currencies",
        LEDGER_0002,
        "where entry_id = new.entry_id group by currency having sum(amount) <> 0) q;",
        "where entry_id = new.entry_id and (select sum(amount) from ledger.postings where entry_id = new.entry_id) <> 0"
        " group by currency having sum(amount) <> 0) q;",
        f"{GUARDS}::test_what_does_not_balance_in_each_currency_is_refused_at_commit",
    ),
    Mutation(
        "an amount is a column that rounds",
        LEDGER_0002,
        "create domain ledger.amount as numeric check (",
        "create domain ledger.amount as numeric(38, 12) check (",
        f"{GUARDS}::test_too_many_decimals_and_no_numbers_are_refused",
    ),
    Mutation(
        "the application may delete from the journal",
        "migrations/privileges.py",
        '    "ledger.accounting_periods": "update (state)",',
        '    "ledger.accounting_periods": "update (state)",\n    "ledger.postings": "delete",',
        f"{GUARDS}::test_the_journal_cannot_be_edited_or_deleted",
    ),
    Mutation(
        "a leg may be added in a later transaction",
        LEDGER_0002,
        "if header.transaction_id is distinct from pg_current_xact_id() then",
        "if header.transaction_id is null then",
        f"{GUARDS}::test_a_header_cannot_be_stamped_with_another_transaction",
    ),
    Mutation(
        "a transaction from before the close still sees the book open",
        BOOKS_0009,
        "month = new.accounting_period for share;",
        "month = new.accounting_period;",
        f"{GUARDS}::test_a_transaction_that_began_before_the_close_does_not_post_into_it",
    ),
    Mutation(
        "a closed book can be opened again",
        BOOKS_0009,
        "if tg_op = 'DELETE' or old.state = 'closed'",
        "if tg_op = 'DELETE'",
        f"{GUARDS}::test_a_closed_book_stays_closed_and_is_never_removed",
    ),
    Mutation(
        "a key with other input counts as booked",
        "billing/ledger/ledger_store.py",
        "if bytes(row.input_hash) != entries[row.idempotency_key].input_hash:",
        "if False:",
        f"{STORE}::test_of_two_inputs_under_one_key_at_once_one_is_booked_and_the_other_refused",
    ),
    Mutation(
        "sealing goes to the highest id",
        "billing/ledger/journal_chain_store.py",
        "    over = _OVER if last.here",
        '    over = "true" if last.here',
        f"{SEALS}::test_an_entry_that_commits_after_later_ones_is_not_passed_over",
    ),
    Mutation(
        "as of a moment includes what is effective at it",
        "billing/ledger/balance_store.py",
        "and e.effective_at < cast(:effective as timestamptz) and {not_sealed}",
        "and e.effective_at <= cast(:effective as timestamptz) and {not_sealed}",
        f"{SEALS}::test_balances_over_snapshots_are_those_of_the_journal_alone",
    ),
    Mutation(
        "what became effective after a snapshot's moment is left out where it was sealed before",
        "billing/ledger/balance_store.py",
        "and e.effective_at >= cast(:from_effective as timestamptz) and",
        "and e.effective_at > cast(:from_effective as timestamptz) and",
        f"{SEALS}::test_balances_over_snapshots_are_those_of_the_journal_alone",
    ),
    Mutation(
        "the chain leaves out the subledger",
        "billing/ledger/journal_chain.py",
        '"subledger": leg.subledger, "amount"',
        '"subledger": "", "amount"',
        f"{SEALS}::test_verifying_names_the_first_entry_that_was_changed[3]",
    ),
    Mutation(
        "the chain does not depend on the entry before",
        "billing/ledger/journal_chain.py",
        "hashlib.sha256(TAG + before + canonical(content))",
        "hashlib.sha256(TAG + canonical(content))",
        "tests/unit/billing/test_journal_chain.py",
    ),
    Mutation(
        "a deadlock is not tried again",
        "billing/database.py",
        'TRY_AGAIN: Final = ("40001", "40P01")',
        'TRY_AGAIN: Final = ("40001",)',
        f"{STORE}::test_a_deadlock_is_tried_again_and_both_are_booked",
    ),
    Mutation(
        "the function that adds postings takes floats",
        "migrations/versions/0048_exact_postings.py",
        "currencies text[], amounts numeric[]\n) returns void",
        "currencies text[], amounts float8[]\n) returns void",
        f"{GUARDS}::test_a_float_is_refused",
    ),
    Mutation(
        "the application may insert postings past the function",
        "migrations/privileges.py",
        'BY_FUNCTION: Final = ("ledger.postings",)',
        "BY_FUNCTION: Final[tuple[str, ...]] = ()",
        f"{GUARDS}::test_a_float_is_refused",
    ),
)

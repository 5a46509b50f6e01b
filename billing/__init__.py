"""Price plans, rating, the ledger, invoices and Stripe: from usage to money (README.md says how)."""

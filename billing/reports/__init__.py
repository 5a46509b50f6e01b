"""What finance takes out of the books: tables, each with what it must tie to (docs/reports.md).

| report | module | ties to |
|---|---|---|
| what a report is: rows, sums, ties | `report.py` | |
| revenue by tenant, model, region | `revenue.py` | what income and contra income moved by |
| fees in advance: invoiced, earned, left | `deferred.py` | 2110 per tenant, at both ends |
| credits: bought, drawn, expired, left | `credit_rollforward.py` | 2100 per grant, at both ends |
| receivables by how long they are due | `ageing.py` | 1100 per billing account |
| tax by country, mode, group and rate | `tax_report.py` | what 2200 moved by; totals of documents |
| commitments: used, missing, still to come | `commitments.py` | what accruals moved 4050 by |
| FOCUS: cost and usage, row by row | `focus.py` | what each document asks for; its net |
| a month's balances for another ledger | `erp.py` | the month's postings |

Pure but for `report_store.py`: values in, tables out. Amounts are Decimal or text, never float.
"""

"""An invoice's document in the forms in which it leaves the house: for people (HTML, PDF) and for machines (UBL).

Each is made of the one document (billing/invoicing/invoice_file.py) and adds no figure of its own.
"""

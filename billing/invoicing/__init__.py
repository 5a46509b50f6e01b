"""Invoices as they are stored and shown to others: rows, numbers, late adjustments, parties."""

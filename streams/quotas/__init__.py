"""Quotas: what a tenant may use, answered before each request; what was promised, kept until its usage is confirmed."""

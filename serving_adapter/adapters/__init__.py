"""Tenants' LoRA adapters as the platform keeps them: checked files, dated versions, what names point to."""

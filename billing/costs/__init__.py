"""What serving costs the operator: a memo book beside the ledger (docs/gpu-cost.md)."""

"""Lost events again: from spools, Kafka, logs and exports, planned as a dry run and applied once."""

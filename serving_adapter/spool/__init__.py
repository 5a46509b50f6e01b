"""The durable spool: what a replica has started and ended, on its own disk before anybody else hears of it."""

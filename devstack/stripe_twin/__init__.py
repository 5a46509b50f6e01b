"""A stateful local look-alike of Stripe's HTTP API; see README.md."""

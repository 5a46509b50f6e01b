"""Price plans and subscriptions: what they say, and where they are kept."""

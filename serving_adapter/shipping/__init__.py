"""From the spool to Kafka: a process of its own. And what a replica says of itself each second."""

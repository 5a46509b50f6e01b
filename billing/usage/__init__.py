"""What of the usage is rated, and the digest by which an outsider can count it."""

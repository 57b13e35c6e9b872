"""Every target on every provider, in one table."""

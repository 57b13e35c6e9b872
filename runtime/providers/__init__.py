"""Execution providers: which there are, which can run here, and what the machine has for them."""

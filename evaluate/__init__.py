"""Comparing a package with the model it was made from: parity, perplexity, tasks, speed."""

from .verification import Row, Verification, record
from .verify import checked, verify

__all__ = ["Row", "Verification", "checked", "record", "verify"]

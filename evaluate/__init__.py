"""Comparing a package with the model it was made from: parity, perplexity, tasks, speed."""

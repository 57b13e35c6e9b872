"""Comparing a package with the model it was made from."""

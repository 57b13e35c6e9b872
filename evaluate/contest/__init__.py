"""Packages and other engines' models in turn: who is faster, by how much, and how sure that is."""

"""A graph held against what its provider has kernels for, before a package is written."""

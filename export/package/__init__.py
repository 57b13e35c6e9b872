"""The package's folder: its config files, how it gets its final name, and how it is published."""

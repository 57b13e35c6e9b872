"""The self-test that travels with a package: what it holds, its replay on an engine, and what this machine proved."""

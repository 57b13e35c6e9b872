"""The benchmarks of model cards, run by lm-evaluation-harness."""

"""PEFT adapters, merged into a checkpoint while it is read."""

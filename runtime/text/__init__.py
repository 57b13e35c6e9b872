"""Text to tokens and back: the tokenizer, the chat template, stop strings."""

"""Where a model is read from: folders, GGUF files, packages, adapters, the Hugging Face hub."""

"""From logits to an answer: the KV cache, sampling, stop conditions, scores. Knows no engine by name."""

"""The sample of Phi-3's model card, on a package: `python model_card.py PACKAGE`."""

import sys

from phi3_onnx.runtime import pipeline

pipe = pipeline("text-generation", model=sys.argv[1])

messages = [
    {"role": "system", "content": "You are a helpful AI assistant."},
    {"role": "user", "content": "Can you provide ways to eat combinations of bananas and dragonfruits?"},
    {"role": "assistant", "content": "1. Blend them with milk and honey. 2. Mix them with lemon juice into a salad."},
    {"role": "user", "content": "What about solving an 2x + 3 = 7 equation?"},
]
output = pipe(messages, max_new_tokens=64, return_full_text=False, do_sample=False)
print(output[0]["generated_text"])

"""A chat that prints each token as it comes: `python streaming_chat.py PACKAGE`; an empty line ends it."""

import sys

from phi3_onnx.runtime import load

with load(sys.argv[1]) as model:
    session = model.chat(system="Answer in one or two sentences.")
    while question := input("> "):
        for chunk in session.send(question, max_tokens=200):
            print(chunk.text, end="", flush=True)
        print()

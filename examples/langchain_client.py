"""LangChain against `phi3-onnx serve my-phi3`: `python langchain_client.py [QUESTION]`; needs `langchain-openai`."""
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false

import sys

from langchain_openai import ChatOpenAI

question = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
model = ChatOpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none", model="my-phi3", max_tokens=200)
answer = model.invoke(question)
print(answer.content)
for piece in model.stream([("human", question), answer, ("human", "Say it in other words.")]):
    print(piece.content, end="", flush=True)
print()

"""LangChain against `phi3-onnx serve my-phi3`; needs `pip install langchain-openai`."""
# pyright: reportMissingImports=false, reportArgumentType=false, reportCallIssue=false

from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none", model="my-phi3", max_tokens=200)
print(model.invoke("Why is the sky blue?").content)
for piece in model.stream("And at sunset?"):
    print(piece.content, end="", flush=True)

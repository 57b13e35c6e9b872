"""OpenAI's own client against `phi3-onnx serve my-phi3`; needs `pip install openai`."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
answer = client.chat.completions.create(
    model="my-phi3", messages=[{"role": "user", "content": "Why is the sky blue?"}], max_tokens=200
)
print(answer.choices[0].message.content)

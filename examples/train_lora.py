"""Train a LoRA on a few chats, on the CPU: `python train_lora.py MODEL train.jsonl my-lora [STEPS]`; needs `peft`.

MODEL is a Hugging Face folder, a hub id or a .gguf file. For more than a try, use TRL or Axolotl on a GPU: what they
save goes into `phi3-onnx export --adapter` in the same way.
"""
# pyright: reportPrivateImportUsage=false

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

name, data, output = sys.argv[1:4]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 20
torch.manual_seed(0)
where: dict[str, Any] = {"pretrained_model_name_or_path": name}
if name.endswith(".gguf"):
    where = {"pretrained_model_name_or_path": Path(name).parent, "gguf_file": Path(name).name}
tokenizer: Any = AutoTokenizer.from_pretrained(**where)
model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)

chats = [json.loads(line)["messages"] for line in Path(data).read_text(encoding="utf-8").splitlines()]
for step in range(steps):
    chat = chats[step % len(chats)]
    question = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    ids, asked = (tokenizer(text, add_special_tokens=False).input_ids for text in (whole, question))
    labels = [-100] * len(asked) + ids[len(asked) :]  # only the answer is learned
    loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0 or step == steps - 1:
        print(f"step {step}: loss {loss.item():.3f}", flush=True)
model.save_pretrained(output, save_embedding_layers=False)  # no row of it is trained here
tokenizer.save_pretrained(output)
print(f"saved {output}")

// transformers.js by itself, with its own tokenizer, chat template and `generate`, on a package as it lies; the same for
// Node.js and the browser. The folder `package` is in `env.localModelPath`.

// Returns the tokens of each answer, and the logits of the last positions of each prompt. The chat template is given,
// since transformers.js knows one in tokenizer_config.json alone, and transformers 5 writes it into a file of its own.
async function answerAll(transformers, task, chat_template, options) {
  const { AutoModelForCausalLM, AutoTokenizer, Tensor } = transformers;
  const tokenizer = await AutoTokenizer.from_pretrained("package");
  const model = await AutoModelForCausalLM.from_pretrained("package", {
    subfolder: "", // the hub's repositories have their graphs in `onnx`
    dtype: "fp32", // which chooses a file, and model.onnx is what it calls so, whatever its weights are
    ...options,
  });
  const int64 = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const tokens = [];
  const logits = [];
  for (const [i, prompt] of task.prompts.entries()) {
    const settings = { chat_template, add_generation_prompt: true, return_tensor: false };
    const ids = Array.from(tokenizer.apply_chat_template(task.chats[i], settings).input_ids, Number);
    if (String(ids) !== String(prompt)) throw new Error(`chat ${i + 1} is ${prompt}, and transformers.js reads ${ids}`);
    const inputs = { input_ids: int64(prompt), attention_mask: int64(prompt.map(() => 1)) };
    const output = await model(inputs);
    logits.push(output.logits.data.slice((prompt.length - task.positions) * output.logits.dims[2]));
    const answer = await model.generate({ ...inputs, max_new_tokens: task.steps, do_sample: false });
    tokens.push(answer.tolist()[0].slice(prompt.length).map(Number));
  }
  return { tokens, logits };
}

if (typeof module !== "undefined") module.exports = { answerAll };

// Greedy decoding with the graph alone, the same for Node.js and the browser. `ort` is onnxruntime-node or -web.

// Runs tokens after those that the cache holds; returns logits of every position and the new cache.
async function step(ort, session, config, ids, start, cache) {
  const total = start + ids.length;
  const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const feeds = { input_ids: int64(ids), attention_mask: int64(new Array(total).fill(1)), ...cache };
  if (session.inputNames.includes("position_ids")) {
    feeds.position_ids = int64(ids.map((_, i) => start + i));
  }
  const outputs = await session.run(feeds);
  const next = {};
  for (let i = 0; i < config.num_hidden_layers; i++) {
    for (const kind of ["key", "value"]) {
      next[`past_key_values.${i}.${kind}`] = outputs[`present.${i}.${kind}`];
    }
  }
  return [outputs.logits, next];
}

// A graph in float16 takes and gives Float16Array, where the browser has it.
function emptyCache(ort, config, type) {
  const cache = {};
  const empty = () => (type === "float16" ? new Float16Array(0) : new Float32Array(0));
  const shape = [1, config.num_key_value_heads, 0, config.head_size];
  for (let i = 0; i < config.num_hidden_layers; i++) {
    for (const kind of ["key", "value"]) {
      cache[`past_key_values.${i}.${kind}`] = new ort.Tensor(type, empty(), shape);
    }
  }
  return cache;
}

function argmax(row) {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i] > row[best]) best = i;
  return best;
}

// Returns the tokens of each answer, and the logits of the last positions of each prompt.
async function answerAll(ort, session, genaiConfig, task) {
  const config = genaiConfig.model.decoder;
  const tokens = [];
  const logits = [];
  for (const prompt of task.prompts) {
    let [out, cache] = await step(ort, session, config, prompt, 0, emptyCache(ort, config, task.type || "float32"));
    const vocabulary = out.dims[2];
    logits.push(Float32Array.from(out.data.subarray((prompt.length - task.positions) * vocabulary)));
    let row = out.data.subarray((prompt.length - 1) * vocabulary);
    const answer = [];
    for (let length = prompt.length; answer.length < task.steps; length++) {
      const token = argmax(row);
      answer.push(token);
      if (task.end_tokens.includes(token) || answer.length === task.steps) break;
      [out, cache] = await step(ort, session, config, [token], length, cache);
      row = out.data;
    }
    tokens.push(answer);
  }
  return { tokens, logits };
}

if (typeof module !== "undefined") module.exports = { answerAll };

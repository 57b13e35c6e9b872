// onnxruntime-node by itself: `node node_client.cjs TASK RESULT`, with NODE_PATH where npm put it.
const fs = require("fs");
const path = require("path");
const ort = require("onnxruntime-node");
const { answerAll } = require("./greedy.js");

async function main(folder, result) {
  const read = (...name) => JSON.parse(fs.readFileSync(path.join(folder, ...name), "utf8"));
  const config = read("package", "genai_config.json");
  const session = await ort.InferenceSession.create(path.join(folder, "package", config.model.decoder.filename));
  const { tokens, logits } = await answerAll(ort, session, config, read("task.json"));
  const file = fs.openSync(path.join(result, "logits.f32"), "w");
  for (const rows of logits) fs.writeSync(file, Buffer.from(rows.buffer, rows.byteOffset, rows.byteLength));
  fs.closeSync(file);
  const version = `onnxruntime-node ${ort.env.versions.node}, Node.js ${process.version}`;
  fs.writeFileSync(path.join(result, "result.json"), JSON.stringify({ version, tokens }));
}

main(process.argv[2], process.argv[3]).catch((error) => {
  console.error(error);
  process.exit(1);
});

// transformers.js in Node.js: `node transformers_client.cjs TASK RESULT`, with NODE_PATH where npm put it.
const fs = require("fs");
const path = require("path");
const transformers = require("@huggingface/transformers");
const { answerAll } = require("./transformers_answers.js");

async function main(folder, result) {
  transformers.env.allowRemoteModels = false;
  transformers.env.localModelPath = folder;
  const read = (...name) => fs.readFileSync(path.join(folder, ...name), "utf8");
  const template = read("package", "chat_template.jinja");
  const { tokens, logits } = await answerAll(transformers, JSON.parse(read("task.json")), template, { device: "cpu" });
  const file = fs.openSync(path.join(result, "logits.f32"), "w");
  for (const rows of logits) fs.writeSync(file, Buffer.from(rows.buffer, rows.byteOffset, rows.byteLength));
  fs.closeSync(file);
  const version = `transformers.js ${transformers.env.version}, Node.js ${process.version}`;
  fs.writeFileSync(path.join(result, "result.json"), JSON.stringify({ version, tokens }));
}

main(process.argv[2], process.argv[3]).catch((error) => {
  console.error(error);
  process.exit(1);
});

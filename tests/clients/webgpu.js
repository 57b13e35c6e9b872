// What the pages of onnxruntime-web's WebGPU build share. It comes before that build, whose words on the console it keeps.
const said = []; // ONNX Runtime says there where it places nodes
for (const kind of ["log", "warn", "error", "info", "debug"]) {
  console[kind] = (...parts) => said.push(parts.map(String).join(" "));
}

function configure(ort) {
  ort.env.wasm.wasmPaths = "/modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "verbose";
}

function failed(error) {
  return fetch("/error", { method: "POST", body: String((error && error.message) || error) });
}

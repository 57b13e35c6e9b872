"""From a model's shape to the ONNX graph of a target."""

"""What runs the graph: ONNX Runtime GenAI, and plain ONNX Runtime."""

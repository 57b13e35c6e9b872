"""Quantizers: from float32 matrices to the packed weights of ONNX Runtime's low-bit operators. Knows no files.

`packed` and `rtn` need numpy and torch alone; calibration runs decoder layers with transformers.
"""

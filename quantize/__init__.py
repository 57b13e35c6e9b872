"""Quantizers: from float32 matrices to the packed weights of ONNX Runtime's low-bit operators. Knows no files.

Needs numpy and torch alone. `phi3` says what the model is that calibration and export run.
"""

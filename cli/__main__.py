"""`python -m phi3_onnx.cli`, the same as the `phi3-onnx` command."""

from . import main

main()

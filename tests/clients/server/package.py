"""Makes the package that the suite serves, once, from a model that others serve: `python package.py FOLDER GGUF`."""

import sys
from pathlib import Path

from phi3_onnx.configs import find_target, with_quantization
from phi3_onnx.configs.store import cache_folder
from phi3_onnx.export import export
from phi3_onnx.export.sources.small_model import fetch_small_model

folder, model = map(Path, sys.argv[1:])
if not model.exists():
    model.symlink_to(fetch_small_model(cache_folder(), notify=print))
if not folder.exists():
    # The model's file has 4 bits already: 8 keep its weights nearly as another server has them, 4 make another model.
    export(model, with_quantization(find_target("cpu-int4-rtn"), bits=8), folder)

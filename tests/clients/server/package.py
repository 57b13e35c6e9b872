"""Makes the package that the suite serves, once: `python package.py FOLDER`."""

import sys
from pathlib import Path

from phi3_onnx.configs.store import cache_folder
from phi3_onnx.export import export
from phi3_onnx.export.sources.small_model import fetch_small_model

if not (folder := Path(sys.argv[1])).exists():
    export(fetch_small_model(cache_folder(), notify=print), "cpu-int4-rtn", folder)

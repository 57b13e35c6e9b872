"""An answer that is JSON of a schema, whatever the model would rather say: `python structured_output.py PACKAGE`."""

import json
import sys

from phi3_onnx.runtime import Guidance, load

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "country": {"type": "string", "maxLength": 40},
        "is_capital": {"type": "boolean"},
    },
    "required": ["city", "country", "is_capital"],
    "additionalProperties": False,
}

with load(sys.argv[1]) as model:
    answer = model.generate(
        "Describe Paris as JSON.", guidance=Guidance("json_schema", json.dumps(CITY)), max_tokens=200
    )
    city = json.loads(answer.text)
    print(city["city"], "is in", city["country"])

"""Holds bills of materials against CycloneDX's own schema: `python -m tests.supply.valid FILE ...`.

It needs `cyclonedx-python-lib[json-validation]`, which has the schema. Exit code 1 where a file is not valid.
"""

import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion  # pyright: ignore[reportMissingImports]
from cyclonedx.validation.json import JsonStrictValidator  # pyright: ignore[reportMissingImports]


def main() -> int:
    """Check the files that the command line names."""
    validator = JsonStrictValidator(SchemaVersion.V1_6)  # pyright: ignore[reportUnknownVariableType]
    wrong = 0
    for name in sys.argv[1:]:
        problem = validator.validate_str(Path(name).read_text(encoding="utf-8"))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        print(f"{name}: {str(problem).splitlines()[0] if problem else 'valid'}")
        wrong += problem is not None
    return 1 if wrong or not sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())

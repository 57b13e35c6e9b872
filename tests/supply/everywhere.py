"""The lock for all systems and versions of Python at once: `pip-audit` leaves out what this one would not take.

    python -m tests.supply.everywhere FOLDER

Writes files in which each package stands once and without conditions: the first has all of them, the next the other
versions of those that the lock has several of.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

LOCK = Path(__file__).parents[2] / "locked.txt"


def unconditional(lock: str) -> list[str]:
    """Return the texts of the files."""
    files: defaultdict[int, list[str]] = defaultdict(list)
    met: defaultdict[str, int] = defaultdict(int)
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        name = entry.partition("==")[0]
        files[met[name]].append(re.sub(r" ;.*?(?= \\\n)", "", entry, count=1))
        met[name] += 1
    return ["\n".join(files[number]) + "\n" for number in sorted(files)]


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(unconditional(LOCK.read_text(encoding="utf-8"))):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

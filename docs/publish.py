"""Make the checkout ready for a package index: `python docs/publish.py https://github.com/OWNER/NAME REVISION`.

An index shows the README alone, where relative links lead nowhere. So they become links into the repository at that
revision, and `pyproject.toml` gets the project's addresses. The workflow knows where the repository lies, and does this
in its own checkout; the result is not committed.
"""

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1]
_LINK = re.compile(r"(!?\[[^\]]*\]\()(?![a-z]+://|#)([^)\s]+)(?=\))")
_URLS = {
    "Documentation": "/blob/{revision}/docs/index.md",
    "Source": "",
    "Issues": "/issues",
    "Changelog": "/blob/{revision}/CHANGELOG.md",
}


def with_absolute_links(readme: str, repository: str, revision: str) -> str:
    """Return a README whose links and pictures are whole addresses.

    Args:
        readme: Markdown, its links relative to the repository's top folder.
        repository: its address on GitHub, without a slash at the end.
        revision: a tag or a commit.

    """

    def whole(match: re.Match[str]) -> str:
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}{repository}/{kind}/{revision}/{match[2]}"

    return _LINK.sub(whole, readme)


def with_urls(project: str, repository: str, revision: str) -> str:
    """Return `pyproject.toml`'s text with the project's addresses; see `with_absolute_links`."""
    urls = [f'{name} = "{repository}{path.format(revision=revision)}"\n' for name, path in _URLS.items()]
    before, heading, after = project.partition("[project.scripts]\n")
    if not heading or "[project.urls]" in project:
        raise ValueError("pyproject.toml must have [project.scripts], and no [project.urls] yet")
    return f"{before}[project.urls]\n{''.join(urls)}\n{heading}{after}"


def main(repository: str, revision: str) -> None:
    """Change both files in place."""
    if not repository.startswith("https://"):
        raise SystemExit(f"{repository}: must be the repository's address, such as https://github.com/OWNER/NAME")
    for name, change in (("README.md", with_absolute_links), ("pyproject.toml", with_urls)):
        path = FOLDER / name
        path.write_text(change(path.read_text(encoding="utf-8"), repository.rstrip("/"), revision), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

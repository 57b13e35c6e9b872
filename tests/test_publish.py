"""What a package index is given: a README whose links lead somewhere from there, and the project's addresses."""

import re
import tomllib
from pathlib import Path

import publish
import pytest

FOLDER = Path(__file__).parents[1]
REPOSITORY = "https://github.example/owner/name"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_link_is_whole_and_names_a_file_of_the_repository() -> None:
    before = re.findall(r"\]\(([^)\s]+)\)", README)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", publish.with_absolute_links(README, REPOSITORY, "v1"))
    assert len(links) == len(before) > 20
    for mark, link in links:
        assert link.startswith("https://"), link
        if link.startswith(REPOSITORY):
            kind = "raw" if mark else "blob"
            path = link.removeprefix(f"{REPOSITORY}/{kind}/v1/").partition("#")[0]
            assert (FOLDER / path).is_file(), link


def test_links_elsewhere_and_within_the_page_stay() -> None:
    text = "[a](https://b.example/c) [d](#e) [f](g.md#h) ![i](j.png)"
    assert publish.with_absolute_links(text, REPOSITORY, "v1") == (
        f"[a](https://b.example/c) [d](#e) [f]({REPOSITORY}/blob/v1/g.md#h) ![i]({REPOSITORY}/raw/v1/j.png)"
    )


def test_the_project_gets_its_addresses_and_loses_nothing() -> None:
    before = (FOLDER / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(publish.with_urls(before, REPOSITORY, "v1"))
    urls = project["project"].pop("urls")
    assert project == tomllib.loads(before)
    assert urls["Source"] == REPOSITORY
    for url in urls.values():
        _, found, path = url.partition("/blob/v1/")
        assert not found or (FOLDER / path).is_file(), url


def test_a_path_is_no_address() -> None:
    with pytest.raises(SystemExit, match="must be the repository's address"):
        publish.main("owner/name", "v1")

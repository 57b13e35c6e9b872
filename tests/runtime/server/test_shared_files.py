"""`serve --share-files`: a client may fetch the package's files, those and no others, and only where that was said."""

from pathlib import Path

from .conftest import StartServer

ORIGIN = "https://my.site"


def test_the_files_are_served_as_they_lie(start_server: StartServer, fake_package: Path) -> None:
    with start_server(shared_files=fake_package, cors=(ORIGIN,)).http() as http:
        reply = http.get("/package/genai_config.json", headers={"Origin": ORIGIN})
        assert reply.status_code == 200
        assert reply.content == (fake_package / "genai_config.json").read_bytes()
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        part = http.get("/package/genai_config.json", headers={"Range": "bytes=2-5"})
        assert part.status_code == 206 and part.content == reply.content[2:6]
        assert http.get("/openapi.json").status_code == 200


def test_nothing_beside_them_is(start_server: StartServer, fake_package: Path) -> None:
    (fake_package.parent / "secret").write_text("secret", encoding="utf-8")
    with start_server(shared_files=fake_package).http() as http:
        for path in ("../secret", "%2e%2e/secret", "..%2fsecret", "%2fetc%2fpasswd", ""):
            assert http.get(f"/package/{path}").status_code == 404, path
        assert http.post("/package/genai_config.json").status_code == 405


def test_only_where_it_was_said_and_with_the_key(start_server: StartServer, fake_package: Path) -> None:
    with start_server().http() as http:
        assert http.get("/package/genai_config.json").status_code == 404
    with start_server(shared_files=fake_package, api_key="key").http() as http:
        assert http.get("/package/genai_config.json").status_code == 401
        bearer = {"Authorization": "Bearer key"}
        assert http.get("/package/genai_config.json", headers=bearer).status_code == 200

import pytest
from phi3_onnx.configs import PackageError, SourceError
from phi3_onnx.configs.files import read_json, read_text, replacing


def test_a_json_object_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": "é"}
    assert read_json(tmp_path / "none.json", optional=True) == {}
    assert read_text(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a.json is not valid JSON: "),
        (b"[]", "a.json must hold a JSON object, got list"),
        (b"\xff", "a.json cannot be read: "),
        (None, "a.json cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    for kind in (PackageError, SourceError):
        with pytest.raises(kind) as caught:
            read_json(path, kind, remedy="export it again")
        assert message in str(caught.value) and str(caught.value).endswith("; export it again")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as beside:
        beside.write_text("first")
        assert not path.exists()

    def interrupted():
        with replacing(path) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]

"""English text of documentation packages: what a page's text is, and which documents are kept."""

import gzip
import json

from examples.paper import english

PAGE = """<html><head><title>No</title><style>p {}</style></head><body><nav>Home</nav>
<h1>A  heading</h1><p>One &amp; <b>two</b>
words.</p><script>no()</script><ul><li>first</li><li>second</li></ul></body></html>"""


def test_text_of_a_page_has_a_line_for_each_block_and_no_navigation():
    lines = [line for line in english.prose(PAGE.encode()).splitlines() if line]
    assert lines == ["A heading", "One & two", "words.", "first", "second"]


def test_documents_are_kept_once_unless_they_are_short(tmp_path, monkeypatch):
    long = "All that is known of it. " * 30

    def unpack(name, folder):
        place = folder / "files" / "usr" / "share" / "doc" / name / "html" / "_sources"
        place.mkdir(parents=True)
        (place / "short.rst.txt").write_text("Too short.")
        (place / "same.rst.txt").write_text(long)
        (place / "other.rst.txt").write_text(f"{name}: {long}")
        (place / "image.png").write_bytes(b"\x89")
        yield f"{name}_1.0_all"

    monkeypatch.setattr(english, "unpack", unpack)
    monkeypatch.setattr(english, "SOURCES", dict.fromkeys(("a-doc", "b-doc"), "html/_sources/**/*.rst.txt"))
    english.main([str(tmp_path)])
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.txt")}
    assert found == {
        "a-doc/00001-other.txt": f"a-doc: {long.strip()}\n",
        "a-doc/00002-same.txt": f"{long.strip()}\n",
        "b-doc/00001-other.txt": f"b-doc: {long.strip()}\n",
    }
    facts = json.loads((tmp_path / "sources.json").read_text())
    assert facts["b-doc"] == {"packages": ["b-doc_1.0_all"], "documents": 1, "characters": len(long.strip()) + 7}


def test_compressed_documents_are_read(tmp_path):
    (tmp_path / "page.html.gz").write_bytes(gzip.compress(PAGE.encode()))
    (tmp_path / "text.md.gz").write_bytes(gzip.compress(b"# A heading\r\n"))
    assert english.read(tmp_path / "text.md.gz") == "# A heading"
    assert english.read(tmp_path / "page.html.gz").startswith("A heading")

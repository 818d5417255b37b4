"""English text from documentation packages of Debian: one text file a document, and the versions it came from.

    python -m examples.paper.english FOLDER

Needs `apt-get`, `apt-cache`, `dpkg-deb` and `lxml`, and 600 MB on disk while it works; 130 MB are downloaded. A
document that another package has as well, word by word, is left out. The result is for `data.files` of a recipe, as
`FOLDER/**/*.txt`, and for the benchmarks of a real model.
"""

import argparse
import gzip
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lxml.etree
import lxml.html

from hf_whittle.files.text import write_json, write_text

SOURCES = {
    "anarchism": "markdown/*.md.gz",
    "apache2-doc": "manual/en/**/*.html",
    "debian-handbook": "html/en-US/*.html",
    "git-doc": "git-doc/**/*.txt",
    "gnome-user-docs": "help/C/**/*.page",
    "linux-doc": "html/_sources/**/*.rst.txt",
    "perl-doc": "**/*.pod",
    "postgresql-doc": "html/*.html",
    "python-django-doc": "html/**/*.html",
    "python-sqlalchemy-doc": "rst/**/*.rst",
    "python3-doc": "html/_sources/**/*.rst.txt",
    "sqlite3-doc": "doc/sqlite3/**/*.html",
}
"""Packages, and the end of the paths of their English documents, which lie in a package that each depends on or in
itself."""
SHORTEST = 500
"""Characters of the shortest document that is kept."""
HEADINGS = [f"h{number}" for number in range(1, 7)]
HIDDEN = ("script", "style", "head", "nav")
BLOCKS = ("p", "li", "pre", "div", "tr", "br", "dt", "dd", "title", "item", "screen", "code", *HEADINGS)


def prose(page: bytes) -> str:
    """The text of an HTML or Mallard page, a line for each block, without navigation and scripts."""
    tree = lxml.html.document_fromstring(page, parser=lxml.html.HTMLParser(encoding="utf-8"))
    lxml.etree.strip_elements(tree, *HIDDEN, with_tail=False)
    for block in tree.iter(*BLOCKS):
        block.text, block.tail = f"\n{block.text or ''}", f"\n{block.tail or ''}"
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in tree.text_content().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def read(path: Path) -> str:
    """The text of a document; markup of pages is left out, that of plain text stays."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if path.name.removesuffix(".gz").endswith((".html", ".page")):
        return prose(raw)
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n").strip()


def packages_of(name: str) -> list[str]:
    """A package, and those with documentation that it depends on."""
    listed = subprocess.run(["apt-cache", "depends", name], capture_output=True, text=True, check=True).stdout
    return [name, *re.findall(r"^ *Depends: (\S*-doc\S*)$", listed, flags=re.MULTILINE)]


def unpack(name: str, folder: Path) -> Iterator[str]:
    """Download a package and those it depends on, unpack them into a folder, and name each with its version."""
    for package in packages_of(name):
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=folder, capture_output=True, check=True)
        file = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "--extract", str(file), str(folder / "files")], check=True)
        yield file.stem
        file.unlink()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper.english", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="folder of the text files")
    into = parser.parse_args(arguments).folder
    seen: set[bytes] = set()
    facts = {}
    for name, pattern in SOURCES.items():
        with tempfile.TemporaryDirectory() as temporary:
            versions = list(unpack(name, Path(temporary)))
            paths = sorted((Path(temporary) / "files").rglob(pattern))
            texts = [(path, read(path)) for path in paths if path.is_file() and not path.is_symlink()]
        number = characters = 0
        for path, text in texts:
            digest = hashlib.sha256(text.encode()).digest()
            if len(text) >= SHORTEST and digest not in seen:
                seen.add(digest)
                number, characters = number + 1, characters + len(text)
                write_text(into / name / f"{number:05d}-{path.name.partition('.')[0]}.txt", text + "\n")
        facts[name] = {"packages": versions, "documents": number, "characters": characters}
        print(name, facts[name], flush=True)
    write_json(into / "sources.json", facts)


if __name__ == "__main__":
    main()

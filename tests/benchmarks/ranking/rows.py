"""Raw values of a ranking study: a file of JSON lines, read as subnets with all that was measured of them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from hf_whittle import SubnetConfig
from hf_whittle.files.text import write_text

_LONG = 64  # entries of a dimension from which they are written as a mask


@dataclass
class Row:
    """A subnet of a group, and its measurements by name: `value` and `seconds`, and what else belongs to them."""

    group: str
    space: str
    origin: str
    subnet: SubnetConfig
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)


class Rows:
    """Rows in a file, one line for each subnet and each measurement; several processes may add to it.

    Args:
        path (`Path`): the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[tuple[str, str], Row]:
        """Rows by group and digest of the subnet, in the order they were added."""
        rows: dict[tuple[str, str], Row] = {}
        for line in self._lines():
            if "facts" in line:
                continue
            key = (line["group"], line["digest"])
            if "subnet" in line:
                rows.setdefault(key, Row(line["group"], line["space"], line["origin"], unpacked(line["subnet"])))
            else:
                measured = {name: value for name, value in line.items() if name not in ("group", "digest", "name")}
                rows[key].measured[line["name"]] = measured
        return rows

    def add_subnet(self, row: Row) -> None:
        names = {"group": row.group, "digest": row.subnet.digest, "space": row.space, "origin": row.origin}
        self._add({**names, "subnet": packed(row.subnet)})

    def add_measurement(self, row: Row, name: str, value: float, **facts: Any) -> None:
        """Add a measurement of a subnet that the file has."""
        row.measured[name] = {"value": value, **facts}
        self._add({"group": row.group, "digest": row.subnet.digest, "name": name, **row.measured[name]})

    def check_facts(self, setting: str, facts: dict[str, Any]) -> None:
        """Note the facts of a setting with its first rows; raise `ValueError` if the file has others."""
        known = next((line["facts"] for line in self._lines() if line.get("setting") == setting), None)
        if known is None:
            self._add({"setting": setting, "facts": facts})
        elif known != facts:
            raise ValueError(f"{self.path} has rows of {known}, got {facts}; give the same model and text")

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts by setting."""
        return {line["setting"]: line["facts"] for line in self._lines() if "facts" in line}

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self.path.is_file():
            yield from map(json.loads, self.path.read_text().splitlines())

    def _add(self, line: dict[str, Any]) -> None:
        with FileLock(f"{self.path}.lock"):
            before = self.path.read_text() if self.path.is_file() else ""
            write_text(self.path, f"{before}{json.dumps(line)}\n")


def packed(subnet: SubnetConfig) -> dict[str, Any]:
    """A subnet as a dict of JSON, in which long lists of entries are hexadecimal masks: bit `i` is entry `i`."""

    def pack(kept: Any) -> Any:
        if isinstance(kept, list | tuple):
            if len(kept) >= _LONG and all(isinstance(entry, int) for entry in kept):
                return hex(sum(1 << entry for entry in kept))
            return [pack(one) for one in kept]
        return kept

    return {name: pack(kept) for name, kept in subnet.to_dict().items()}


def unpacked(values: dict[str, Any]) -> SubnetConfig:
    def unpack(kept: Any) -> Any:
        if isinstance(kept, str):
            mask = int(kept, 16)
            return tuple(entry for entry in range(mask.bit_length()) if mask >> entry & 1)
        return tuple(map(unpack, kept)) if isinstance(kept, list) else kept

    return SubnetConfig.from_dict({name: unpack(kept) for name, kept in values.items()})

"""The numbers in docs/real_exports.md, from the results of ``foreign_exports.py`` and ``foreign_files.py``.

    python benchmarks/real_exports.py

Those two scripts do this at their end, so that the page always says what was measured last.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "real_exports.md"
EXPORTERS = ("dynamo", "legacy")
EXPORTS, FILES = "| model | dynamo: fp32 |", "| | taken | refused in one line |"
"""How the two tables begin."""
KINDS = {"graph": "graphs", "module": "modules", "image": "images"}
Rows = list[dict[str, Any]]


def exports_table(rows: Rows) -> str:
    """Return a row for each model: torchvision's first, by name."""
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["exporter"]] = row
    lines = [f"{EXPORTS} INT8, dB | legacy: fp32 | INT8, dB |", "| --- | --- | --- | --- | --- |"]
    for model in sorted(by_model, key=lambda m: (m.startswith("timm/"), m)):
        cells = [_cell(by_model[model][exporter]) for exporter in EXPORTERS]
        lines.append(f"| `{model}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["result"] != "taken":
        return f"{row['result']} | "
    return f"{row['fp32_relative']:.0e} | {row['int8_db']:.1f}".replace("e-0", "e-")


def files_table(rows: Rows) -> str:
    """Return how many of the generated inputs ended how."""
    lines = [f"{FILES} rejected by the verdict | faults |", "| --- | --- | --- | --- | --- |"]
    for kind, name in KINDS.items():
        ends = [r["outcome"] for r in rows if r["kind"] == kind]
        rejected = f"{ends.count('rejected')}, made to be (a bias of 1e6 that no 8 bits can hold)"
        counts = [str(ends.count("taken")), str(ends.count("refused")), rejected if kind == "graph" else ""]
        lines.append(f"| {name} | {' | '.join([*counts, str(ends.count('fault'))])} |")
    return "\n".join(lines)


def page(text: str, exports: Rows, files: Rows) -> str:
    """Return the page with the numbers of such results."""
    for begin, table in ((EXPORTS, exports_table(exports)), (FILES, files_table(files))):
        text = re.sub(rf"^{re.escape(begin)}.*\n(\|.*\n)*", lambda _, t=table: f"{t}\n", text, flags=re.MULTILINE)
    taken = sum(r["result"] == "taken" for r in exports)
    text = re.sub(r"Of \d+ rows \d+ were taken", f"Of {len(exports)} rows {taken} were taken", text)
    if late := next((r["why"] for r in exports if r["result"] == "not done"), ""):
        text = re.sub(r"longer than \d+ s", f"longer than {re.findall(r'[0-9]+', late)[0]} s", text)
    for kind, before in (("graph", "sends {} generated graphs"), ("module", "{} modules"), ("image", "{} image files")):
        count = sum(r["kind"] == kind for r in files)
        text = re.sub(before.format(r"\d+"), before.format(count), text)
    return text


def rows_of(name: str) -> Rows:
    """Return the rows that a script kept."""
    rows: Rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def write() -> None:
    """Bring the page up to date."""
    PAGE.write_text(page(PAGE.read_text(), rows_of("foreign_exports"), rows_of("foreign_files")))
    print(f"numbers written to {PAGE}")


if __name__ == "__main__":
    write()

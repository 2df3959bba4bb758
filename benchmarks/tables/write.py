"""Write the tables of the documents: from stored results, and from lists in the code.

    python -m benchmarks.tables.write            write them
    python -m benchmarks.tables.write --check    exit 1 if one is stale

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. No number in it is typed by hand:
results.toml says which results it shows and how.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.archive import paper_plan
from benchmarks.tables import contents, from_cart, from_code
from benchmarks.tables.table import ROOT, ResultsTable, Table
from deepcovid_export.settings import read_table

DOCUMENTS = (
    *("README.md", "benchmarks/README.md", "jetson/README.md", "jetson/REASONS.md"),
    *("docs/training.md", "docs/serve.md", "docs/reference/recipes.md"),
    *("docs/reference/commands.md", "docs/reference/files.md"),
    *("docs/reference/cart.md", "docs/reference/conformance.md", "docs/archive-plan.md"),
)
BLOCK = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


TABLES: dict[str, Callable[[Path], Table]] = {
    name: lambda _, make=make: make()  # type: ignore[misc]
    for name, make in (from_code.TABLES | from_cart.TABLES | paper_plan.TABLES).items()
}
for name, table in read_table(Path(__file__).with_name("results.toml")).items():
    of_result = getattr(contents, name.replace("-", "_"), contents.one)
    TABLES[name] = partial(ResultsTable(**table).table, of_result)


def main() -> None:
    """Write the stale documents, or name them."""
    texts = {name: (ROOT / name).read_text("utf-8") for name in DOCUMENTS}
    now = {name: rendered(text, ROOT / name) for name, text in texts.items()}
    stale = [name for name in DOCUMENTS if now[name] != texts[name]]
    if "--check" in sys.argv and stale:
        raise SystemExit(f"stale: {', '.join(stale)}: run `python -m benchmarks.tables.write`")
    for name in stale:
        (ROOT / name).write_text(now[name], encoding="utf-8")
        print(name)


def rendered(text: str, document: Path) -> str:
    """The text of a document with its tables as they are now."""
    return BLOCK.sub(
        lambda found: f"{found[1]}{TABLES[found[2]](document).markdown()}\n{found[3]}", text
    )


if __name__ == "__main__":
    main()

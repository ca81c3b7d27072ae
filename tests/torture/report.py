"""What a campaign tried and what came of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Report:
    """Cases by kind, and everything that was lost, crashed or wrong."""

    tried: Counter[str] = field(default_factory=Counter)
    """By ``kind: name``."""
    faults: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else was counted."""

    def add(self, kind: str, name: str, faults: list[str], count: int = 1) -> None:
        """Count a case, or several of a kind, and tell of faults at once."""
        self.tried[f"{kind}: {name}"] += count
        for fault in faults:
            print(f"FAULT {kind}: {name}: {fault}", flush=True)
            self.faults.append(f"{kind}: {name}: {fault}")

    @property
    def sums(self) -> dict[str, int]:
        """How many cases there were of each kind."""
        sums: Counter[str] = Counter()
        for name, count in self.tried.items():
            sums[name.partition(":")[0]] += count
        return dict(sums)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        tried = dict(sorted(self.tried.items()))
        return {"cases": sum(tried.values()), "sums": self.sums, **self.facts, "tried": tried, "faults": self.faults}

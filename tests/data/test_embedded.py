from __future__ import annotations

from collections import Counter

from qdeploy.data.catalog import load_dataset
from qdeploy.data.embedded import FILE


def test_the_embedded_set_is_small_balanced_and_never_overlaps() -> None:
    assert FILE.stat().st_size <= 2_000_000
    assert FILE.with_suffix(".LICENSE").read_text().startswith("MIT License")
    dataset = load_dataset()
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 2000, "val": 500, "test": 1000}
    assert dataset.problems == ()
    for split in dataset.splits.values():
        assert set(Counter(split.labels.tolist()).values()) == {len(split) // 10}
    hashes = [h for split in dataset.splits.values() for h in split.hashes]
    assert len(hashes) == len(set(hashes)) == 3500


def test_its_content_is_the_published_one() -> None:
    # changes only with scripts/make_embedded_data.py or with the rules of preprocessing and hashing
    assert load_dataset().sha256.startswith("85083a776dc6")

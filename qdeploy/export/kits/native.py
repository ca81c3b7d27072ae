"""A folder that needs a C compiler and nothing else: a model as C, with its kernels and a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qdeploy.core.artifact import Artifact
from qdeploy.core.card import Goldens
from qdeploy.core.errors import ArtifactError
from qdeploy.core.files import write_bytes, write_json
from qdeploy.core.preprocessing import FILTERS
from qdeploy.export.kits.c import TEMPLATES as C_TEMPLATES
from qdeploy.export.kits.c import c_cut, c_string
from qdeploy.export.kits.folder import fill_templates, filled
from qdeploy.native.kernels import KERNEL_FILES, KERNELS, RESIZE_FILES, STACK_BYTES
from qdeploy.native.photos import photos_bytes, ppm
from qdeploy.native.simulate import simulate
from qdeploy.native.source import model_source, program_of
from qdeploy.runtime.session import ENGINES

TEMPLATES = Path(__file__).parent / "native_files"
CORTEX_M_FOLDER = "cortex_m"
"""In the kit: the program for microcontrollers."""
FROM_C_KIT = ("files.h", "files.c", "unknown.h")
CORTEX_M = Path(__file__).parent / "native_cortex_m"


def write_native_kit(folder: Path, artifacts: Sequence[Artifact], recommended: str) -> None:
    """Write the kit's files, of an INT8 file if there is one: that for Cortex-M, or the recommended one before others.

    In C it is the smaller and the faster one, whatever another engine makes of it on this machine.

    Raises:
        ArtifactError: If the compiled model's answers are not the file's.
        UnsupportedError: If the model holds an operator without a kernel.
    """
    models = [a for a in artifacts if a.engine is None]
    artifact = min(
        models, key=lambda a: (a.card.precision != "int8", a.card.target != "cortex-m", a.path.name != recommended)
    )
    source, goldens, card = model_source(artifact), native_goldens(artifact), artifact.card
    words = {
        "name": card.name,
        "file": artifact.path.name,
        "precision": card.precision,
        "sha256": artifact.sha256,
        "size": card.preprocessing.size,
        "classes": len(card.labels),
        "arena": source.arena_bytes,
        "constants": source.constant_bytes,
        "cuts": f"{c_cut(card.cut, artifact.path.name)}, " if card.cut else "",
        "stack": STACK_BYTES,
        "labels": "\n".join(f"    {c_string(label)}," for label in card.labels),
        "background": ", ".join(map(str, card.preprocessing.background)),
        "interpolation": card.preprocessing.interpolation,
        "filter": FILTERS.index(card.preprocessing.interpolation) + 1,
    }
    fill_templates(TEMPLATES, folder, words)
    (folder / CORTEX_M_FOLDER).mkdir()
    fill_templates(CORTEX_M, folder / CORTEX_M_FOLDER, words)
    write_bytes(folder / "labels.h", filled(C_TEMPLATES / "labels.h.in", words))
    write_bytes(folder / "model.c", source.text.encode())
    for name in FROM_C_KIT:
        write_bytes(folder / name, (C_TEMPLATES / name).read_bytes())
    for name in (*KERNEL_FILES, *RESIZE_FILES):
        write_bytes(folder / name, (KERNELS / name).read_bytes())
    photos = photos_of(goldens.images)
    write_bytes(folder / "model.goldens", photos_bytes(photos, photo_logits(artifact, photos, goldens)))
    write_json(folder / "model.card.json", {**card.to_dict(), "sha256": artifact.sha256})
    write_bytes(folder / "example.ppm", ppm(photos[1 % len(photos)]))


def photos_of(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return a model's golden images as photos: one as it is, then wide, tall and small ones in turn."""
    size = images.shape[1]
    shapes = ((size, size), (2 * size + 5, size + 31), (size + 7, 3 * size + 2), (size // 2 + 1, size // 2 + 8))
    made = []
    for i, image in enumerate(images):
        photo = Image.fromarray(image).resize(shapes[i % len(shapes)], Image.Resampling.BICUBIC)
        made.append(np.asarray(photo))
    return made


def photo_logits(artifact: Artifact, photos: list[NDArray[np.uint8]], goldens: Goldens) -> NDArray[np.float32]:
    """Return the logits that the C must give for photos, bit for bit."""
    program, prepare = program_of(artifact), artifact.card.preprocessing
    rows = []
    for photo, image, logits in zip(photos, goldens.images, goldens.logits, strict=True):
        made = prepare.resize(Image.fromarray(photo))
        same = np.array_equal(made, image)
        rows.append(logits[None] if same else simulate(program, made)[program.logits.name])
    return np.concatenate(rows)


def native_goldens(artifact: Artifact) -> Goldens:
    """Return a model file's goldens with the logits that its C must give, bit for bit.

    Raises:
        ArtifactError: If they are too far from the file's own.
    """
    program, goldens = program_of(artifact), artifact.card.goldens
    logits = np.concatenate([simulate(program, image)[program.logits.name] for image in goldens.images])
    found, least = (
        goldens.sqnr_db(logits.tolist()),
        min(goldens.min_sqnr_db, ENGINES["native"].least_db(artifact.card.precision)),
    )
    if not (found >= least and goldens.same_classes(logits.tolist())):
        raise ArtifactError(
            f"{artifact.path} gives other answers when it is compiled: {found:.1f} dB against its goldens, at least "
            f"{least:.0f} dB and the same classes expected",
            fix="use the C kit (`kit=c`)",
        )
    return Goldens.of(goldens.images, logits, goldens.min_sqnr_db)

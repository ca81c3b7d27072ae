"""``POST /explain``: where in an image a served file finds its answer, by what is behind ``qdeploy explain``."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qdeploy.core.artifact import read_artifact
from qdeploy.core.errors import ImageError, QdeployError
from qdeploy.serve.models import Opened, Served
from qdeploy.serve.refusal import RefusedError, refused_image

if TYPE_CHECKING:
    from PIL import Image

    from qdeploy.checks.explain import Explainer


def explained(served: Served, opened: Opened, data: bytes) -> dict[str, Any]:
    """Explain the answer to an image.

    A model's file is opened a second time, with its inner tensors as outputs, when it is asked for the first time; that
    stays open until the file changes.

    Args:
        served: The model.
        opened: What answers now.
        data: An image file's bytes.

    Returns:
        The answer and its pictures as JSON-ready values.

    Raises:
        RefusedError: If it is no image, or the model has nothing to show.
    """
    try:
        found = _explainer(served, opened)(data)
    except ImageError as error:
        raise refused_image(error) from error
    except RefusedError:
        raise
    except QdeployError as error:
        raise RefusedError(400, "nothing-to-show", str(error)) from error
    from qdeploy.checks.explain.pictures import pictures

    shown = [{"caption": caption, "png_base64": _text(picture)} for caption, picture in pictures(found)]
    return {
        "model": served.name,
        "version": str(served.version),
        "label": found.label,
        "probability": round(found.probability, 6),
        "pictures": shown,
    }


def _explainer(served: Served, opened: Opened) -> Explainer:
    """Return what explains the file that answers.

    Raises:
        RefusedError: If the file has changed since it was opened.
    """
    from qdeploy.checks.explain import Explainer  # with numpy, for which a server's start need not wait

    if served.explainer is None or served.explainer[0] != opened.sha256:
        artifact = read_artifact(opened.path)
        if artifact.sha256 != opened.sha256:
            raise RefusedError(503, "not-ready", "the model's file has just changed", ((b"retry-after", b"2"),))
        served.explainer = opened.sha256, Explainer(replace(artifact, card=opened.card))
    explainer: Explainer = served.explainer[1]
    return explainer


def _text(picture: Image.Image) -> str:
    from qdeploy.checks.explain.draw import png

    return base64.b64encode(png(picture)).decode()

"""Where in an image a model file finds its answer: class activation maps, picked tokens and attention maps."""

from __future__ import annotations

from qdeploy.checks.explain.draw import overlay
from qdeploy.checks.explain.pictures import common_scale, pictures
from qdeploy.checks.explain.run import AttentionMap, ClassMap, Explainer, Explanation, PickedTokens, explain

__all__ = [
    "AttentionMap",
    "ClassMap",
    "Explainer",
    "Explanation",
    "PickedTokens",
    "common_scale",
    "explain",
    "overlay",
    "pictures",
]

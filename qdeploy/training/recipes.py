"""The configuration of a training run, and the recipes: named sets of values for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qdeploy.core.errors import InputError, near_miss
from qdeploy.core.image_formats import formats_of_run
from qdeploy.core.machine import MOST_THREADS
from qdeploy.core.only_with import CONTROLLER, ONLY_WITH, counts
from qdeploy.data.embedded import NAME as EMBEDDED
from qdeploy.models.registry import MODELS

OPTIONS = ("epochs", "batch_size", "lr", "seed", "formats", "device", "amp", "threads")
"""Fields that a command has an option for; see ``qdeploy.core.errors``. The others are settings of a recipe."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run. Every mechanism has a field that switches it off."""

    model: str = "nano"
    """A name of ``qdeploy models``, or ``package.module:Class`` for a network of your own."""
    weights: str = ""
    """A run, or a safetensors file, whose weights training begins with; other classes have a new head."""
    continued: int = 0
    """Epochs that the run had before it was extended; the schedule covers those after them. Not to be set by hand."""
    data: str = EMBEDDED
    """A published data set or a folder with a sub-folder per class."""
    formats: str = ""
    """Image formats that are taken, separated by commas, as ``jpeg,png``; all where it is empty."""
    recipe: str = "small"
    model_fields: dict[str, str] = field(default_factory=dict)
    """Other fields of the model's configuration and their values as text; ``--set model.depths=1,2,3`` sets one."""
    input_size: int = 0
    """Height and width of the model's input in pixels; 0: the model's own, 64."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How images are resized to it."""
    normalisation: Literal["imagenet", "cifar-10", "data"] = "imagenet"
    """Mean and standard deviation of the colours: of ImageNet or CIFAR-10 as usually published, or of the training
    images, measured. The run's record and every card carry them."""
    all_images: bool = False
    """Train on the validation images too, as papers on CIFAR do: the log then shows the test accuracy, which chooses
    nothing: the last epoch's weights are kept."""
    epochs: int = 36
    """Passes over the training images; 36 over the embedded 2,000 take about four minutes on 2 cores."""
    batch_size: int = 64
    """Images per optimizer step, over all processes."""
    lr: float = 2e-3
    """Base learning rate of AdamW."""
    min_lr: float = 0.0
    """Cosine only: where it ends."""
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    seed: int = 0

    schedule: Literal["cosine", "confidence"] = "cosine"
    """cosine: warm-up and one cosine to zero; confidence: the paper's controller (training/dynamics.py)."""
    warmup_share: float = 0.03
    """Cosine only: share of all steps with a rising learning rate."""
    warmup_epochs: int = 1
    """Confidence only: epochs in which the rate rises from a tenth; a boost ends them early."""
    label_smoothing: float = 0.0
    """Label smoothing without ``dynamic_smoothing``."""
    ema_decay: float = 0.998
    """Decay per step of the averaged weights without ``dynamic_ema``; 0 keeps no average."""
    boosts: bool = False
    """Confidence only: multiply the rate in use after a large reward."""
    plateau_resets: bool = False
    """Confidence only: after epochs without growth, a new cosine cycle at the rate in use or more."""
    restarts: bool = False
    """Confidence only: warm restart at the end of the cosine cycle (epoch 60 of 70)."""
    dynamic_momentum: bool = False
    """Confidence only: AdamW's first beta follows the reward, else it is 0.92."""
    dynamic_ema: bool = False
    """Confidence only: the EMA decay is 0.96 + 0.02 confidence."""
    dynamic_smoothing: bool = False
    """Confidence only: label smoothing is 0.2 (1 - confidence), at least 0.05."""
    dynamic_drop_path: bool = False
    """Confidence only: drop path scales by 0.5 + confidence."""
    hardness: bool = False
    """Weigh each image's loss by ``1 + (1 - p)``, p the probability of its target."""
    auxiliary: bool = True
    """A loss on the SOTA head's auxiliary path, weight 0.4 falling to 0.2."""
    deep_supervision: float = 0.0
    """Weight of a loss on the SOTA head's transformer path alone, which starts with almost no gradient."""
    confidence_from_label: bool = False
    """The paper's literal head confidence in training; never used in validation, where it would leak the label."""
    teacher: str = ""
    """Runs or model files of qdeploy's, separated by commas, whose mean answer the student learns as well."""
    distill_weight: float = 0.7
    """Share of the teacher's answers in the loss, the labels' is the rest. Only with ``teacher``."""
    distill_temperature: float = 4.0
    """Logits of both are divided by it before they are compared (Hinton et al., 2015). Only with ``teacher``."""
    swa: bool = False
    """Average the weights of the epochs after 85 % of the run; kept if it validates best."""
    reloads: bool = False
    """Go back to the best weights at epochs 30, 45 and 60 of 70 and at the start of SWA."""
    best_epoch: Literal["auto", "highest", "within-error"] = "auto"
    """Whose weights are kept: those of the highest validation top-1, or the latest within one standard error of it.
    auto: the latter under a cosine, where later weights are the better ones, else the former."""
    guard: bool = True
    """Go back to the best weights if validation accuracy falls below half of the best, or the loss is not finite."""

    augmentation: Literal["none", "shift", "crop", "low", "mid", "high"] = "shift"
    """shift: mirror and move by up to ``shift`` pixels; crop: mirror and cut a smaller square; low, mid, high: the
    paper's regimes in two phases."""
    shift: int = 4
    """Largest move in pixels, repeating the border; only for shift."""
    crop: float = 0.875
    """Side of the square that training sees, as a share of the input's; validation sees all. Only for crop."""
    pad: int = 0
    """Pixels by which the image is reflected beyond its borders before the square is cut. Only for crop."""
    randaugment: bool = False
    """RandAugment in the second phase of low, mid and high."""
    mixup: bool = False
    cutmix: bool = False

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision; auto takes bf16 where the device has it, fp16 on other GPUs, else none."""
    deterministic: bool = False
    """Refuse operations that may differ from run to run on a GPU; slower there. On a CPU the number of threads is that
    of the cores then, not what a clock chooses; with the same number runs repeat."""
    threads: int = 0
    """CPU threads; 0: what OMP_NUM_THREADS asks for, else the fastest count, measured, and anew when the speed
    changes."""
    compile: bool = False
    """Compile the model with ``torch.compile``; needs a C++ compiler."""
    tensorboard: bool = False
    """Also write the log as TensorBoard events into the run's folder."""
    checkpoint_seconds: float = 120.0
    """Longest time between two checkpoints; epochs that are shorter are saved at their end."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{_named(name)} must be between {low:g} and {high:g}", found=value)
        for name, hint in _HINTS.items():
            value = getattr(self, name)
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            if choices and value not in choices:
                raise InputError(
                    f"{_named(name)} must be {', '.join(choices[:-1])} or {choices[-1]}", found=f"'{value}'"
                )
        formats_of_run(asdict(self))
        for parts, other, values in ONLY_WITH:
            idle = [part for part in parts if getattr(self, part) and not getattr(TrainConfig, part)]
            if idle and not counts(getattr(self, other), values):
                raise InputError(
                    f"{', '.join(idle)}: only with {other} {' or '.join(values)}",
                    found=f"'{getattr(self, other)}'",
                    fix=f"change it or set {' '.join(f'{part}=off' for part in idle)}",
                )

    @property
    def model_changes(self) -> tuple[tuple[str, str], ...]:
        """``model_fields`` as the registry takes them."""
        return tuple(sorted(self.model_fields.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


def _named(field: str) -> str:
    return f"`{field}`" if field in OPTIONS else field


_HINTS: dict[str, Any] = get_type_hints(TrainConfig)
_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 100_000),
    "batch_size": (2, 65_536),
    "lr": (1e-8, 1),
    "min_lr": (0, 1),
    "input_size": (0, 4096),
    "weight_decay": (0, 10),
    "clip_norm": (0, 1e6),
    "seed": (0, 2**32 - 1),
    "threads": (0, MOST_THREADS),
    "warmup_share": (0, 1),
    "warmup_epochs": (1, 100_000),
    "label_smoothing": (0, 0.9),
    "ema_decay": (0, 0.99999),
    "deep_supervision": (0, 10),
    "distill_weight": (0, 1),
    "distill_temperature": (0.1, 100),
    "shift": (0, 31),
    "pad": (0, 32),
    "crop": (0.1, 1),
    "checkpoint_seconds": (0, 86_400),
}

MECHANISMS = (*CONTROLLER, "hardness", "swa", "reloads", "randaugment", "mixup", "cutmix")
"""What the paper's recipe switches on."""
_PAPER: dict[str, Any] = {
    "model": "qonstraint-5.9-gap",
    "epochs": 70,
    "batch_size": 256,
    "lr": 5e-4,
    "weight_decay": 5e-5,
    "schedule": "confidence",
    "label_smoothing": 0.1,
    "ema_decay": 0.97,
    "augmentation": "mid",
    **dict.fromkeys(MECHANISMS, True),
}
"""The reported run (paper, III.C and IV.A). Smoothing and decay are what remains where their dynamics are off: the
controller's own values at confidence 0.5."""


_EARLIER: dict[str, Any] = {
    **_PAPER,
    "schedule": "cosine",
    "augmentation": "low",
    **dict.fromkeys(MECHANISMS, False),
    "mixup": True,
}
"""5.5: a cosine, conservative augmentation, MixUp only (paper, IV.D); 5.6 is 5.5 with doubled width."""


def _paper_ablations() -> dict[str, dict[str, Any]]:
    """Head x augmentation x depth (paper, IV.B); low augmentation with high depth ran for 60 epochs."""
    found = {}
    for head in ("gap", "sota"):
        for strength in ("low", "mid", "high"):
            for depth in ("", "-deep"):
                changes: dict[str, Any] = {"model": f"qonstraint-5.9-{head}{depth}", "augmentation": strength}
                if (strength, depth) == ("low", "-deep"):
                    changes["epochs"] = 60
                found[f"qonstraint-5.9-{head}-{strength}{depth}"] = {**_PAPER, **changes}
    return found


_THESIS: dict[str, Any] = {
    "model": "mobilevit-standard-separable-v2",
    "data": "cifar-10",
    "epochs": 100,
    "batch_size": 128,
    "lr": 1e-3,
    "min_lr": 1e-6,
    "weight_decay": 1e-4,
    "warmup_share": 0.0,
    "ema_decay": 0.0,
    "seed": 42,
    "input_size": 256,
    "interpolation": "bicubic",
    "augmentation": "crop",
    "pad": 4,
    "normalisation": "cifar-10",
    "amp": "fp16",
}
"""The MobileViT grid's recipe (thesis, chapter 5): bicubic 256, reflected by 4, crops of 224, tested at 256."""

RECIPES: dict[str, dict[str, Any]] = {
    "small": {},
    "qonstraint-5.9": _PAPER,
    "qonstraint-5.9-sota": {**_PAPER, "model": "qonstraint-5.9-sota"},
    "qonstraint-5.5": {**_EARLIER, "model": "qonstraint-5.5"},
    "qonstraint-5.6": {**_EARLIER, "model": "qonstraint-5.6"},
    "qonstraint-5.9-aggressive": {**_PAPER, "model": "qonstraint-5.9-aggressive", "batch_size": 512},
    "qonstraint-5.9-lighter": {**_PAPER, "model": "qonstraint-5.9-lighter", "batch_size": 512},
    "qonstraint-5.9-heavier": {**_PAPER, "model": "qonstraint-5.9-heavier", "batch_size": 512},
    "qonstraint-5.9-heaviest": {**_PAPER, "model": "qonstraint-5.9-heaviest", "batch_size": 192},
    **_paper_ablations(),
    "mobilevit-thesis": _THESIS,
    "mobilevit-64": {
        **_THESIS,
        "data": EMBEDDED,
        "input_size": 64,
        "amp": "auto",
        "epochs": 36,
        "normalisation": "imagenet",
    },
}
"""Each recipe's values; what it does not name has the default of ``TrainConfig``, which is the recipe small."""


def config_from_recipe(recipe: str = "small", **overrides: Any) -> TrainConfig:
    """Build a configuration from a recipe's name; fields given as None keep the recipe's value.

    Raises:
        InputError: If there is no such recipe or a value is out of range.
    """
    if recipe not in RECIPES and recipe in MODELS:
        raise InputError(f"'{recipe}' is a model, not a recipe", fix=f"give `model={recipe}`")
    if recipe not in RECIPES:
        raise InputError(
            f"there is no recipe named '{recipe}'{near_miss(recipe, RECIPES)}; known: {', '.join(RECIPES)}"
        )
    given = {k: v for k, v in overrides.items() if v is not None}
    if "model" in given:
        require_no_recipe(given["model"])
    return TrainConfig(**{**RECIPES[recipe], "recipe": recipe, **given})


def require_no_recipe(model: str) -> None:
    """Check that the name of a model is not that of a recipe.

    Raises:
        InputError: If it is; the recipe's model is suggested.
    """
    if model in RECIPES and model not in MODELS:
        own = RECIPES[model].get("model", TrainConfig.model)
        raise InputError(
            f"'{model}' is a recipe, not a model", fix=f"give `recipe={model}`, or its model `model={own}`"
        )


def config_from_record(values: dict[str, Any]) -> TrainConfig:
    """Rebuild the configuration a run has saved.

    Raises:
        InputError: If it has fields that this version does not know, lacks some, or has one of the wrong type.
    """
    names = {f.name for f in fields(TrainConfig)}
    if set(values) != names:
        odd = sorted(set(values) ^ names)
        raise InputError(f"the run was written by another version of qdeploy (it differs in {', '.join(odd)})")
    for name, value in values.items():
        hint = get_origin(_HINTS[name]) or _HINTS[name]
        kind = hint if isinstance(hint, type) else str  # what is chosen from a list is a text
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise InputError(f"the run's record is damaged: {name} is {value!r}, expected {kind.__name__}; train again")
    return TrainConfig(**values)


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Turn ``field=value`` texts into fields of the configuration.

    Raises:
        InputError: If a text has no such form, the field is unknown or given twice, or the value has the wrong type.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("a setting is written field=value", found=f"'{text}'")
        name = name.strip().replace("-", "_")
        if name.startswith("model."):
            inside: dict[str, str] = found.setdefault("model_fields", {})
            if name.removeprefix("model.") in inside:
                raise InputError(f"{name} is set twice", fix="set it once")
            inside[name.removeprefix("model.")] = value.strip()
            continue
        if name not in _HINTS or name in ("recipe", "model_fields", "continued"):
            raise InputError(
                f"a recipe has no field '{name}'{near_miss(name, _HINTS)}", fix=f"known: {', '.join(_HINTS)}"
            )
        if name in found:
            raise InputError(f"{name} is set twice", fix="set it once")
        found[name] = _parse(name, value.strip())
    return found


def _parse(name: str, value: str) -> Any:
    kind = _HINTS[name]
    if kind is bool:
        known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        if value.lower() not in known:
            raise InputError(f"{name} must be true or false", found=f"'{value}'")
        return known[value.lower()]
    try:
        return kind(value) if kind in (int, float) else value
    except ValueError as error:
        raise InputError(f"{name} must be a number", found=f"'{value}'") from error

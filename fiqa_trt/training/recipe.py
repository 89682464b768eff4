"""Everything that decides a training besides its data: a frozen record, and its TOML form."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from fiqa_trt.errors import InputError
from fiqa_trt.models.spec import MEMBERS

SCHEDULES = ("cosine", "step")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        members: which members to train; the others stay as `--init` gave them.
        epochs: passes over the `train` rows.
        batch: images of a step.
        rate: peak learning rate of AdamW.
        decay: its weight decay.
        warmup: share of all steps over which the rate rises from 0.
        schedule: after the warm-up, `cosine` falls to 0; `step` divides by 10 at each third of the way.
        correlation: lambda of MSECorrLoss.
        mse: weight of its other term.
        causes: weight of the causes' loss, where the table tells severities of causes.
        ema: decay of the moving average of the weights, which is what is validated and written; 0 for none.
        shift: largest random shift of a crop, as a share of its side; half of the crops are mirrored as well.
        patience: stop after so many epochs without a better SRCC + PLCC on the `val` rows; 0 for never.
        val_share: share of the groups held back where the table has no column `split`.
        seed: of initialisation, order, augmentation and split.
        precision: `bf16` for autocast; `auto` takes it on a GPU that has it, and FP32 on a CPU, where it is not slower
            for these networks (see the model card).
    """

    members: tuple[str, ...] = MEMBERS
    epochs: int = 12
    batch: int = 32
    rate: float = 1.5e-3
    decay: float = 1e-2
    warmup: float = 0.05
    schedule: str = "cosine"
    correlation: float = 2.0
    mse: float = 1.0
    causes: float = 1.0
    ema: float = 0.999
    shift: float = 0.04
    patience: int = 0
    val_share: float = 0.1
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        """Raises InputError for a value that cannot be trained with."""
        ranges = {
            "epochs": (1, 100_000), "batch": (2, 65_536), "rate": (1e-9, 10), "decay": (0, 10), "warmup": (0, 1),
            "correlation": (0, 1000), "mse": (0, 1000), "causes": (0, 1000), "ema": (0, 0.999999), "shift": (0, 0.4),
            "patience": (0, 100_000), "val_share": (0.001, 0.9), "seed": (0, 2**63 - 1),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} = {value:g}: it must be between {low:g} and {high:g}")
        if self.correlation + self.mse == 0:
            raise InputError("correlation = 0 and mse = 0: one of them must be more, or there is nothing to learn")
        for name, choices in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} = {getattr(self, name)!r}: it must be one of {', '.join(choices)}")
        if not self.members or len(set(self.members)) < len(self.members) or set(self.members) - set(MEMBERS):
            raise InputError(f"members = {list(self.members)}: they must be one or both of {', '.join(MEMBERS)}")


def read_recipe(config: Path | None, changes: dict[str, Any]) -> Recipe:
    """The recipe of a TOML file (default: our defaults), with `changes` that are not None.

    Raises:
        InputError: no such file, not TOML, an unknown name, a value of the wrong type or out of range.
    """
    values: dict[str, Any] = {}
    if config is not None:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            values = tomllib.loads(config.read_text())
        except OSError as exc:
            raise InputError(f"cannot read {config}: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise InputError(f"{config} is not TOML: {exc}") from exc
    default = dataclasses.asdict(Recipe())
    for name, value in values.items():
        if name not in default:
            raise InputError(f"{config}: unknown name `{name}`; known are {', '.join(default)}")
        kind = type(default[name])
        fits = isinstance(value, (kind, int) if kind is float else list if kind is tuple else kind)
        if not fits or isinstance(value, bool):
            raise InputError(f"{config}: {name} = {value!r} must be of the kind of {default[name]!r}")
        values[name] = kind(value)
    return Recipe(**values | {name: value for name, value in changes.items() if value is not None})

"""What all methods of one table share: a network, images, a training schedule, and what is kept a share of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

#: The facts of a cell that make its setting.
SETTING = ("model", "model_args", "dataset", "image_size", "split_seed", "train")

#: What a share is kept of: single weights unless channels are removed.
WEIGHTS = "weights"
#: In words; also the measures that a cell may have.
MEASURES = {WEIGHTS: "weights", "flops": "FLOPs", "params": "parameters", "channels": "channels"}


@dataclass(frozen=True)
class Setting:
    """A network, images, a training schedule and a measure of size; equal when all their facts are.

    Args:
        measure: a key of :data:`MEASURES`. Dense networks have that of weights.
    """

    key: str
    facts: Mapping[str, Any] = field(compare=False)
    measure: str = WEIGHTS

    @property
    def of_weights(self) -> Setting:
        """The same with the measure that dense networks have."""
        return replace(self, measure=WEIGHTS)

    @property
    def share(self) -> str:
        """What the shares of its networks are, in words: ``density``, or ``FLOPs kept``."""
        return "density" if self.measure == WEIGHTS else f"{MEASURES[self.measure]} kept"

    @property
    def model(self) -> str:
        """The network with its arguments, such as ``resnet20 (width 0.5)``."""
        arguments = ", ".join(f"{name} {value}" for name, value in (self.facts.get("model_args") or {}).items())
        return f"{self.facts['model']} ({arguments})" if arguments else str(self.facts["model"])

    @property
    def dataset(self) -> str:
        """The data set without what only says where its files lie, and the size that its images were given."""
        kind, _, name = str(self.facts["dataset"]).partition(":")
        name = name or kind
        for ending in (".gz", ".tar", ".tgz"):
            name = name.removesuffix(ending)
        size = self.facts.get("image_size")
        return f"{name} ({size} px)" if size else name


def setting_of(cell: Mapping[str, Any]) -> Setting:
    """The setting of a cell, given as its mapping in a file."""
    facts = {name: cell.get(name) for name in SETTING}
    kind, _, path = str(cell["dataset"]).partition(":")
    facts["dataset"] = f"{kind}:{Path(path).name}" if path else kind  # wherever the same images lie
    facts["train"] = {name: value for name, value in cell["train"].items() if name != "seed"}
    return Setting(json.dumps(facts, sort_keys=True), facts, cell.get("measure", WEIGHTS))


def setting_names(settings: Sequence[Setting]) -> dict[Setting, str]:
    """A title for each setting; the facts in which settings of one title differ are added to it."""
    titles = {
        setting: f"{setting.model}, {setting.dataset}"
        + ("" if setting.measure == WEIGHTS else f", by {MEASURES[setting.measure]}")
        for setting in settings
    }
    flat = {setting: _flat(setting.facts) for setting in settings}
    for title in set(titles.values()):
        alike = [setting for setting in settings if titles[setting] == title]
        names = dict.fromkeys(name for setting in alike for name in flat[setting])
        differing = [name for name in names if len({flat[setting].get(name) for setting in alike}) > 1]
        for setting in alike:
            details = ", ".join(f"{name.replace('_', ' ')} {flat[setting].get(name)}" for name in differing)
            titles[setting] = f"{title} ({details})" if details else title
    return titles


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    flat = {name: str(value) for name, value in facts.items() if name != "train"}
    return flat | {name: str(value) for name, value in facts["train"].items()}

"""Scorers on disk: safetensors beside a JSON card, and the pretrained ones that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autosparse.errors import AutoSparseError, FileFormatError, UnknownNameError
from autosparse.features import FEATURE_SETS, feature_set
from autosparse.files import atomic_path, load_tensors, read_json, save_tensors, write_json
from autosparse.scorer.network import NETWORKS, Scorer

_KIND = "scorer"

#: What a scorer is for -> the pretrained one where none is named: to prune single weights at their initial values, to
#: guide the steps of a short training, to score channels.
DEFAULT_SCORERS = {"weights": "cifar10-digits", "steps": "guide", "channels": "resnet20-cifar10"}


@dataclass(frozen=True)
class StoredScorer:
    """A scorer, what it is called, and its card."""

    name: str
    scorer: Scorer
    card: Mapping[str, Any]


def card_path(path: Path) -> Path:
    return path.with_suffix(".json")


def save_scorer(path: Path, scorer: Scorer, card: Mapping[str, Any]) -> None:
    """Write ``path`` (safetensors) and, beside it, the card as JSON.

    The weights file alone suffices to load the scorer; the card is for people and repeats what the file says.
    """
    metadata = {"features": scorer.feature_set, "network": scorer.network_name}
    with atomic_path(card_path(path)) as temporary:  # the card first, so that a full disk changes neither file
        write_json(temporary, {**metadata, **card})
        save_tensors(path, _KIND, scorer.state_dict(), metadata)


def _pretrained_folder() -> Path:
    """``pretrained/``: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "pretrained"
    return inside if inside.is_dir() else package.parent / "pretrained"


def list_scorers() -> list[str]:
    """Names of the pretrained scorers."""
    return sorted(path.stem for path in _pretrained_folder().glob("*.safetensors"))


def load_scorer(which: str | Path | None = None, use: str = "weights") -> StoredScorer:
    """A pretrained scorer by name, or one from a file.

    Args:
        which: a name, or a path (anything with a folder or the suffix ``.safetensors``); ``None`` is the default.
        use: a key of :data:`DEFAULT_SCORERS`.

    Raises:
        UnknownNameError: no such pretrained scorer, feature set or network. FileFormatError: not a scorer file.
    """
    text = str(DEFAULT_SCORERS[use] if which is None else which)
    if isinstance(which, Path) or text.endswith(".safetensors") or "/" in text:
        return _read(Path(text), text)
    if text not in list_scorers():
        raise UnknownNameError("scorer", text, list_scorers(), "or give the path of a .safetensors file")
    return _read(_pretrained_folder() / f"{text}.safetensors", text)


def _read(path: Path, name: str) -> StoredScorer:
    tensors, metadata = load_tensors(path, _KIND)
    features, network = metadata.get("features"), metadata.get("network")
    if not isinstance(features, str) or features not in FEATURE_SETS:
        raise AutoSparseError(
            f"{path} uses the feature set {features!r}, which this release does not know "
            f"(known: {', '.join(FEATURE_SETS)}): upgrade autosparse or train a scorer anew"
        )
    if not isinstance(network, str) or network not in NETWORKS:
        raise AutoSparseError(
            f"{path} uses the scorer network {network!r}, which this release does not know "
            f"(known: {', '.join(NETWORKS.names())}): upgrade autosparse or train a scorer anew"
        )
    scorer = Scorer(features, network)
    try:
        scorer.load_state_dict(tensors)
    except RuntimeError as error:
        raise FileFormatError(
            f"{path} does not hold the {len(feature_set(features).names)}-feature '{network}' scorer it names "
            f"({str(error).splitlines()[-1].strip()}): restore or remake it"
        ) from None
    card = read_json(card_path(path)) if card_path(path).exists() else dict(metadata)
    return StoredScorer(name, scorer.eval(), card)

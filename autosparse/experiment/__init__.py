"""From names to results on disk: prune a network into a folder, train it into another, or both by one method."""

from autosparse.experiment.network import Network, PruneSettings
from autosparse.experiment.pruned import prune_network, prune_to_folder, read_pruning
from autosparse.experiment.start import Known
from autosparse.experiment.trained import TrainResult, train_to_folder

__all__ = [
    "Known",
    "Network",
    "PruneSettings",
    "TrainResult",
    "prune_network",
    "prune_to_folder",
    "read_pruning",
    "train_to_folder",
]

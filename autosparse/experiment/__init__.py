"""From names to results on disk: prune a network into a folder, train it into another, or both by one method."""

from autosparse.experiment.network import Network, PruneSettings, ShrinkSettings
from autosparse.experiment.pruned import prune_network, prune_to_folder, read_pruning
from autosparse.experiment.shrunk import read_shrinking, shrink_to_folder
from autosparse.experiment.start import Known
from autosparse.experiment.trained import TrainResult, train_to_folder

__all__ = [
    "Known",
    "Network",
    "PruneSettings",
    "ShrinkSettings",
    "TrainResult",
    "prune_network",
    "prune_to_folder",
    "read_pruning",
    "read_shrinking",
    "shrink_to_folder",
    "train_to_folder",
]

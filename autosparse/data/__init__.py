"""Image sets as batches of normalised tensors.

``for x, y in load_data("digits").train.batches(128, shuffle_seed=epoch, augment=True)``
"""

from autosparse.data.load import ImageData, list_datasets, load_data
from autosparse.data.split import Split

__all__ = ["ImageData", "Split", "list_datasets", "load_data"]

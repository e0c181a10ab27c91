"""AutoSparse: prune neural networks before they are trained.

pruned = autosparse.prune(model, data=batches, sparsity=0.98)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
pruned.hold(optimizer)

small = autosparse.shrink(model, data=batches, method="precrop", flops=0.5)
autosparse.measure({"small": small, "dense": model}, image_shape=(3, 224, 224))
autosparse.export_onnx(small, example=images, path="small.onnx")
"""

from importlib.metadata import PackageNotFoundError, version

from autosparse.channels.recipes import list_channel_methods
from autosparse.channels.store import load
from autosparse.criteria import list_criteria
from autosparse.data import list_datasets
from autosparse.errors import AutoSparseError
from autosparse.exporting import export_onnx, export_program
from autosparse.masks import Masks
from autosparse.measuring import measure
from autosparse.models import list_models
from autosparse.pruning import CollapseWarning, Pruned, prune
from autosparse.recipes import list_methods
from autosparse.scorer.store import list_scorers, load_scorer
from autosparse.shrinking import ShrinkPlan, plan_shrink, shrink

try:
    __version__ = version("autosparse")
except PackageNotFoundError:  # a source tree that is on the path without being installed
    __version__ = "0+unknown"

__all__ = [
    "AutoSparseError",
    "CollapseWarning",
    "Masks",
    "Pruned",
    "ShrinkPlan",
    "export_onnx",
    "export_program",
    "list_channel_methods",
    "list_criteria",
    "list_datasets",
    "list_methods",
    "list_models",
    "list_scorers",
    "load",
    "load_scorer",
    "measure",
    "plan_shrink",
    "prune",
    "shrink",
]

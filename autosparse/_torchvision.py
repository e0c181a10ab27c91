"""Import torchvision, also beside a torch build that its compiled operators do not match.

The CPU build of torch and the registry's CUDA build of torchvision differ only in torchvision's compiled detection
operators, which this project never calls. Declaring their two schemas first lets the import finish.
Every module that uses torchvision, timm or torch-pruning calls :func:`ensure_torchvision` before it.
"""

from __future__ import annotations

import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # kept alive: its definitions go when it is collected


def ensure_torchvision() -> None:
    """Make ``import torchvision`` work; does nothing when it already does. ImportError when it is not installed."""
    global _library
    if "torchvision" in sys.modules:
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        _library.define("nms" + _SCHEMA)
        _library.define("qnms" + _SCHEMA)
        import torchvision  # noqa: F401

"""One training loop for every network of the project."""

from autosparse.training.callbacks import Callback, JsonlLog, ProgressBar
from autosparse.training.checkpoint import load_state, save_state
from autosparse.training.config import SCHEDULES, TrainConfig
from autosparse.training.evaluation import evaluate, evaluate_loss
from autosparse.training.loop import EpochRecord, train
from autosparse.training.precision import resolve_precision

__all__ = [
    "SCHEDULES",
    "Callback",
    "EpochRecord",
    "JsonlLog",
    "ProgressBar",
    "TrainConfig",
    "evaluate",
    "evaluate_loss",
    "load_state",
    "resolve_precision",
    "save_state",
    "train",
]

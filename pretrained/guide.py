"""Write guide.safetensors, the scorer of short trainings: two slopes, found by hand on validation accuracy.

    python pretrained/guide.py

A search by trials did not find a better one so far: docs/study.md, "Steps".
"""

from pathlib import Path

from autosparse.features import feature_set
from autosparse.provenance import provenance
from autosparse.scorer.search import SCALES, scorer_of
from autosparse.scorer.store import save_scorer

#: log|w| + 0.3 log(root mean square of the gradient), up to what is the same for all weights.
SLOPES = {"log|z|": 1.0, "log|h|": 0.3}


def main() -> None:
    names = feature_set("state").names
    scorer = scorer_of([SLOPES.get(name, 0.0) * SCALES[name] for name in names], "state")
    card = {
        "slopes": SLOPES,
        "sources": [{"run": "by hand"}],
        "note": "slopes chosen by hand on validation accuracy of VGG-16 (width 0.25) and ResNet-20 (width 0.5) on "
        "CIFAR-10 at 1 % density, 500 steps, one seed; its outputs are a ranking, not odds",
        "provenance": provenance(),
    }
    save_scorer(Path(__file__).with_name("guide.safetensors"), scorer, card)


if __name__ == "__main__":
    main()

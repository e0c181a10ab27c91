"""The page of ``autosparse demo``: survival, scorer, layer densities and accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autosparse.report.demo_results import DemoResults
from autosparse.report.figures import accuracy_figure, layer_density_figure
from autosparse.report.irp_page import survival_section
from autosparse.report.page import Section, render_page
from autosparse.report.survival import prediction_figure
from autosparse.report.tables import Table
from autosparse.scorer.dataset import IRPRun
from autosparse.scorer.fit import FittedScorer


def demo_page(results: DemoResults, provenance: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
        provenance: what made the results.
    """
    sections = [
        survival_section(results.run),
        _scorer_section(results.run, results.fitted),
        _density_section(results),
        _accuracy_section(results),
    ]
    intro = "A scorer learned on one network prunes another that it has never seen. Made by: autosparse demo"
    return render_page("AutoSparse demo", intro, sections, provenance)


def _scorer_section(run: IRPRun, fitted: FittedScorer) -> Section:
    overlaps = list(fitted.figures["scorer"].overlap)
    predictors = Table(
        header=("predictor", "R2", "Spearman", *(f"top {name}" for name in overlaps)),
        rows=[
            (name, f"{f.r2:.3f}", f"{f.spearman:.3f}", *(f"{f.overlap[key]:.3f}" for key in overlaps))
            for name, f in fitted.figures.items()
        ],
        caption="Prediction of survival on layers that the scorer was not fitted to. For magnitude and SNIP, R2 is "
        "that of the best monotone function of the score.",
    )
    text = (
        f"The scorer maps {len(fitted.card['normalisation']['columns'])} scale-free features of an initial weight "
        "to the share of rounds it survives. The figures are for held-out layers."
    )
    figure = prediction_figure(
        fitted.heldout_predicted, fitted.heldout_label, run.num_rounds, "Predicted and true survival"
    )
    return Section("What the scorer learned", text, [(figure, "A perfect scorer lies on the diagonal.")], [predictors])


def _density_section(results: DemoResults) -> Section:
    figure = layer_density_figure(results.densities, f"Layer densities at {results.density:.0%}")
    text = (
        f"{1 - results.density:.0%} of the weights removed in one shot, before training, from the same initial weights."
    )
    return Section(
        f"Pruning {results.target} at initialisation", text, [(figure, "Where each method spends its weights.")], []
    )


def _accuracy_section(results: DemoResults) -> Section:
    pruned = {name: values for name, values in results.accuracies.items() if name != "dense"}
    title = f"{results.target} on digits, {results.density:.0%} of the weights"
    figure = accuracy_figure(pruned, title, ("dense", results.accuracies["dense"]))
    text = (
        f"Test accuracy after {results.epochs} epochs with the same settings and data order for all; the last epoch "
        "counts. With three seeds and a small test set, differences of one or two points mean little."
    )
    table = Table(header=results.header, rows=results.rows(), caption="Mean ± standard deviation over seeds.")
    return Section("What the pruning was worth", text, [(figure, "Points are seeds.")], [table])

"""Figures and a self-contained HTML page that show what pruning did."""

from autosparse.report.figures import accuracy_figure, curve_figure, layer_density_figure
from autosparse.report.page import Fold, Section, render_page, write_figures, write_page
from autosparse.report.save import figure_data_uri, save_figure
from autosparse.report.style import label_styles, method_styles
from autosparse.report.survival import prediction_figure, survival_figure
from autosparse.report.tables import Table, latex_table, markdown_table

__all__ = [
    "Fold",
    "Section",
    "Table",
    "accuracy_figure",
    "curve_figure",
    "figure_data_uri",
    "label_styles",
    "latex_table",
    "layer_density_figure",
    "markdown_table",
    "method_styles",
    "prediction_figure",
    "render_page",
    "save_figure",
    "survival_figure",
    "write_figures",
    "write_page",
]

"""Figures and a self-contained HTML page that show what pruning did."""

from autosparse.report.figures import accuracy_figure, curve_figure, layer_density_figure
from autosparse.report.page import Section, Table, markdown_table, render_page, write_page
from autosparse.report.save import figure_data_uri, save_figure
from autosparse.report.style import method_styles
from autosparse.report.survival import prediction_figure, survival_figure

__all__ = [
    "Section",
    "Table",
    "accuracy_figure",
    "curve_figure",
    "figure_data_uri",
    "layer_density_figure",
    "markdown_table",
    "method_styles",
    "prediction_figure",
    "render_page",
    "save_figure",
    "survival_figure",
    "write_page",
]

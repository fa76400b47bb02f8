"""Tables and figures from recorded results; knows nothing of models or training."""

from sta_lightning.report.figures import (
    Curve,
    MethodResult,
    forgetting_figure,
    fusion_figure,
    sweep_figure,
)
from sta_lightning.report.selection import Selection, selection_figure
from sta_lightning.report.style import save_png
from sta_lightning.report.tables import Row, Table

__all__ = [
    "Curve",
    "MethodResult",
    "Row",
    "Selection",
    "Table",
    "forgetting_figure",
    "fusion_figure",
    "save_png",
    "selection_figure",
    "sweep_figure",
]

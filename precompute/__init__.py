"""Run a frozen backbone once, keep its features in one HDF5 file, train heads in seconds.

    import precompute
    precompute.extract("photos", "photos.h5", backbone="resnet18")
    training = precompute.train_head("photos.h5", "photos.safetensors")
    print(training.scores["val"].accuracy)

The names below load on first use, so that `import precompute` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precompute.backbones.load import Backbone, load_backbone
    from precompute.cache import Cache, open_cache, verify
    from precompute.diagnosis import Diagnosis, Finding
    from precompute.diagnosis.doctor import doctor
    from precompute.errors import PrecomputeError
    from precompute.evaluation.comparison import Comparison, compare
    from precompute.evaluation.depth import depth
    from precompute.evaluation.depth_result import Depth
    from precompute.evaluation.learning_curve import FewShotCurve, FewShotPoint, few_shot
    from precompute.evaluation.rank import Ranked, Ranking, rank
    from precompute.export import Exported, export_features
    from precompute.external.features import Imported, import_features
    from precompute.extraction.conduct import Progress
    from precompute.extraction.extract import extract
    from precompute.extraction.forecast import Forecast, forecast
    from precompute.extraction.repair import repair
    from precompute.extraction.result import Extraction
    from precompute.finetuning.fine_tune import fine_tune
    from precompute.finetuning.tuning import Tuning
    from precompute.heads import (
        AttentiveHead,
        CentroidHead,
        KNNHead,
        KNNRegressionHead,
        LabelScores,
        LogisticHead,
        MLPHead,
        MLPRegressionHead,
        MultilabelKNNHead,
        MultilabelLogisticHead,
        MultilabelMLPHead,
        MultilabelRidgeHead,
        NumberScores,
        RidgeHead,
        RidgeRegressionHead,
        SavedHead,
        Scores,
        SelectedHead,
        load_head,
        save_head,
    )
    from precompute.prediction import Prediction, Predictions, predict, predict_each
    from precompute.training.head import Training, train_head

__all__ = [
    "AttentiveHead",
    "Backbone",
    "Cache",
    "CentroidHead",
    "Comparison",
    "Depth",
    "Diagnosis",
    "Exported",
    "Extraction",
    "FewShotCurve",
    "FewShotPoint",
    "Finding",
    "Forecast",
    "Imported",
    "KNNHead",
    "KNNRegressionHead",
    "LabelScores",
    "LogisticHead",
    "MLPHead",
    "MLPRegressionHead",
    "MultilabelKNNHead",
    "MultilabelLogisticHead",
    "MultilabelMLPHead",
    "MultilabelRidgeHead",
    "NumberScores",
    "PrecomputeError",
    "Prediction",
    "Predictions",
    "Progress",
    "Ranked",
    "Ranking",
    "Report",
    "RidgeHead",
    "RidgeRegressionHead",
    "SavedHead",
    "Scores",
    "SelectedHead",
    "Training",
    "Tuning",
    "__version__",
    "compare",
    "depth",
    "doctor",
    "export_features",
    "extract",
    "few_shot",
    "fine_tune",
    "forecast",
    "import_features",
    "load_backbone",
    "load_head",
    "open_cache",
    "predict",
    "predict_each",
    "rank",
    "repair",
    "report",
    "save_head",
    "train_head",
    "verify",
]

_HOMES = {
    "precompute.backbones.load": ("Backbone", "load_backbone"),
    "precompute.cache": ("Cache", "open_cache", "verify"),
    "precompute.evaluation.comparison": ("Comparison", "compare"),
    "precompute.diagnosis": ("Diagnosis", "Finding"),
    "precompute.diagnosis.doctor": ("doctor",),
    "precompute.errors": ("PrecomputeError",),
    "precompute.export": ("Exported", "export_features"),
    "precompute.external.features": ("Imported", "import_features"),
    "precompute.extraction.extract": ("extract",),
    "precompute.extraction.forecast": ("Forecast", "forecast"),
    "precompute.heads": (
        *("CentroidHead", "KNNHead", "LogisticHead", "MLPHead", "RidgeHead", "RidgeRegressionHead"),
        *("MultilabelKNNHead", "MultilabelLogisticHead", "MultilabelMLPHead", "MultilabelRidgeHead"),
        *("KNNRegressionHead", "MLPRegressionHead", "LabelScores", "NumberScores"),
        *("AttentiveHead", "SelectedHead", "SavedHead", "Scores", "load_head", "save_head"),
    ),
    "precompute.evaluation.learning_curve": ("FewShotCurve", "FewShotPoint", "few_shot"),
    "precompute.evaluation.depth": ("depth",),
    "precompute.evaluation.depth_result": ("Depth",),
    "precompute.evaluation.rank": ("Ranked", "Ranking", "rank"),
    "precompute.prediction": ("Prediction", "Predictions", "predict", "predict_each"),
    "precompute.extraction.repair": ("repair",),
    "precompute.reports.report": ("Report", "report"),
    "precompute.extraction.conduct": ("Progress",),
    "precompute.extraction.result": ("Extraction",),
    "precompute.finetuning.fine_tune": ("fine_tune",),
    "precompute.finetuning.tuning": ("Tuning",),
    "precompute.training.head": ("Training", "train_head"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("precompute")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

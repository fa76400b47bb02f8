"""Lightning modules: pretraining, fine-tuning, evaluating, fusing and forgetting."""

from sta_lightning.engine import TaskSource
from sta_lightning.modules.adamerging import AdaMerging
from sta_lightning.modules.classifier import CLIPClassifier
from sta_lightning.modules.contrastive import ContrastivePretraining
from sta_lightning.modules.distilled import DistilledMerging
from sta_lightning.modules.evaluation import MultiTaskEvaluation
from sta_lightning.modules.forget import ForgetModule
from sta_lightning.modules.merge import MergeModule
from sta_lightning.modules.several import MultiModelEvaluation, evaluate_many

__all__ = [
    "AdaMerging",
    "CLIPClassifier",
    "ContrastivePretraining",
    "DistilledMerging",
    "ForgetModule",
    "MergeModule",
    "MultiModelEvaluation",
    "MultiTaskEvaluation",
    "TaskSource",
    "evaluate_many",
]

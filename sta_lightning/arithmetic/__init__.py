"""The method itself: tensors in, tensors out. Knows no file, no module, no Lightning.

Every function is pure: it reads mappings from tensor name to tensor, changes none of them, and
returns new tensors.
"""

from sta_lightning.arithmetic.checks import (
    check_compatible,
    check_finite,
    check_importance,
    check_state,
    torch_device,
    torch_dtype,
)
from sta_lightning.arithmetic.dare import Dare
from sta_lightning.arithmetic.forgetting import forget
from sta_lightning.arithmetic.fusion import fuse
from sta_lightning.arithmetic.importance import MEASURES, Measure, find_measure, importance_for
from sta_lightning.arithmetic.linear import average, negate, task_arithmetic
from sta_lightning.arithmetic.masks import (
    forget_mask,
    fusion_mask,
    random_forget_mask,
    random_fusion_mask,
    tensor_generator,
)
from sta_lightning.arithmetic.method import MergeMethod, VectorMethod
from sta_lightning.arithmetic.methods import merge, unlearn
from sta_lightning.arithmetic.normalization import NORMALIZATIONS, normalize
from sta_lightning.arithmetic.registry import (
    FORGET_METHODS,
    FUSION_METHODS,
    find_method,
    forget_method,
    fusion_method,
    has_setting,
    make_method,
    settings_of,
)
from sta_lightning.arithmetic.selection import rank
from sta_lightning.arithmetic.states import Merged, StateDict, floating_names, weight_names
from sta_lightning.arithmetic.vectors import change_size, task_vector

__all__ = [
    "Dare",
    "FORGET_METHODS",
    "FUSION_METHODS",
    "MEASURES",
    "NORMALIZATIONS",
    "Measure",
    "Merged",
    "MergeMethod",
    "StateDict",
    "VectorMethod",
    "average",
    "change_size",
    "check_compatible",
    "check_finite",
    "check_importance",
    "check_state",
    "find_measure",
    "find_method",
    "floating_names",
    "weight_names",
    "forget",
    "forget_mask",
    "forget_method",
    "fuse",
    "fusion_method",
    "fusion_mask",
    "has_setting",
    "importance_for",
    "make_method",
    "merge",
    "negate",
    "normalize",
    "random_forget_mask",
    "random_fusion_mask",
    "rank",
    "settings_of",
    "task_arithmetic",
    "task_vector",
    "tensor_generator",
    "torch_device",
    "torch_dtype",
    "unlearn",
]

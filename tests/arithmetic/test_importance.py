"""The importance measures (Eq. 12, 21, 22) and what they need."""

import pytest
import torch

from sta_lightning.arithmetic import (
    MEASURES,
    importance_for,
)
from sta_lightning.errors import StaError

WEIGHTS = {"w": torch.tensor([-2.0, 0.5]), "s": torch.tensor(3.0), "n": torch.tensor(4)}
LP = {"w": torch.tensor([1.0, 8.0]), "s": torch.tensor(2.0)}
PRETRAINED = {"w": torch.tensor([-1.0, 0.0]), "s": torch.tensor(3.0), "n": torch.tensor(4)}


def plain(state: dict[str, torch.Tensor]) -> dict[str, object]:
    return {name: value.tolist() for name, value in state.items()}


@pytest.mark.parametrize(
    ("measure", "wanted"),
    [
        ("lp", {"w": [1.0, 8.0], "s": 2.0}),
        ("amp", {"w": [4.0, 0.25], "s": 9.0}),
        ("lp+amp", {"w": [4.0, 2.0], "s": 18.0}),
        ("delta-amp", {"w": [1.0, 0.25], "s": 0.0}),
        ("delta-lp", {"w": [1.0, 8.0], "s": 2.0}),
        ("fisher", {"w": [1.0, 8.0], "s": 2.0}),
    ],
)
def test_every_measure_on_numbers_done_by_hand(measure: str, wanted: dict[str, object]) -> None:
    result = importance_for(measure, weights=WEIGHTS, scores=LP, pretrained=PRETRAINED)
    assert plain(result) == wanted
    assert all(value.dtype == torch.float32 for value in result.values())
    result["w"].add_(1)
    assert plain(LP)["w"] == [1.0, 8.0]


def test_the_list_of_measures_is_complete() -> None:
    assert list(MEASURES)[:3] == ["lp", "amp", "lp+amp"]
    assert all(name == measure.name for name, measure in MEASURES.items())
    for measure in MEASURES:
        if MEASURES[measure].file:
            with pytest.raises(StaError, match=r"needs the scores.*scores were not given"):
                importance_for(measure, weights=WEIGHTS, pretrained=PRETRAINED)
        else:
            assert set(importance_for(measure, weights=WEIGHTS, pretrained=PRETRAINED)) == {"w", "s"}


def test_half_precision_weights_are_squared_in_float32() -> None:
    small = {"w": torch.tensor([1e-4, 300.0], dtype=torch.float16)}
    result = importance_for("amp", weights=small)["w"]
    assert result.dtype == torch.float32
    assert float(result[0]) > 0  # 1e-8 is nothing in float16
    assert float(result[1]) == 90000.0  # and this is infinite
    wide = {"w": torch.ones(1, dtype=torch.float64)}
    assert importance_for("amp", weights=wide)["w"].dtype == torch.float64


def test_unknown_measures_and_missing_sources_are_refused() -> None:
    with pytest.raises(StaError, match=r"measure='influence' was asked for.*'lp', 'amp', 'lp\+amp'"):
        importance_for("influence", weights=WEIGHTS)
    with pytest.raises(StaError, match=r"'delta-amp' needs the pretrained weights"):
        importance_for("delta-amp", weights=WEIGHTS)
    with pytest.raises(StaError, match=r"missing 1 tensor: 's'"):
        importance_for("lp", weights=WEIGHTS, scores={"w": LP["w"]})
    with pytest.raises(StaError, match=r"missing 1 tensor: 's'"):
        importance_for("lp+amp", weights=WEIGHTS, scores={"w": LP["w"]})
    with pytest.raises(StaError, match="does not match the pretrained model"):
        importance_for("delta-amp", weights=WEIGHTS, pretrained={"w": WEIGHTS["w"]})


@pytest.mark.parametrize("measure", ["lp", "lp+amp"])
def test_a_signed_sum_is_not_a_loss_preservation(measure: str) -> None:
    with pytest.raises(StaError, match=r"negative in 'w'.*absolute values"):
        importance_for(measure, weights=WEIGHTS, scores={**LP, "w": torch.tensor([1.0, -1.0])})


def test_a_negative_fisher_information_is_refused() -> None:
    with pytest.raises(StaError, match=r"Fisher information is negative in 'w'.*squares"):
        importance_for("fisher", weights=WEIGHTS, scores={**LP, "w": torch.tensor([1.0, -1.0])})


def test_what_is_not_finite_or_overflows_is_refused_by_name() -> None:
    with pytest.raises(StaError, match=r"loss-preservation score holds NaN or Inf.*'w'"):
        importance_for("lp", weights=WEIGHTS, scores={**LP, "w": torch.tensor([1.0, float("nan")])})
    with pytest.raises(StaError, match=r"the model holds NaN or Inf.*'w'"):
        importance_for("amp", weights={"w": torch.tensor([float("inf")])})
    with pytest.raises(StaError, match=r"amplitude of the model holds NaN or Inf.*'w'"):
        importance_for("amp", weights={"w": torch.tensor([1e30])})


def test_parameters_give_plain_tensors() -> None:
    weights = {"w": torch.nn.Parameter(torch.ones(2))}
    for measure in MEASURES:
        result = importance_for(measure, weights=weights, scores={"w": torch.ones(2)}, pretrained=weights)
        assert not result["w"].requires_grad

import numpy as np
import pytest

from edgebuild.bench import outputs
from edgebuild.core.errors import CheckError


def test_a_collapsed_network_is_refused() -> None:
    varied = [np.arange(8.0).reshape(4, 2), np.array([1, 1, 1, 1])]
    outputs.check_vary("net", varied)
    with pytest.raises(CheckError, match=r"net: 4 inputs give \(almost\) the same outputs"):
        outputs.check_vary("net", [np.ones((4, 2)), np.array([1, 1, 1, 1])])
    with pytest.raises(CheckError):  # one input that differs is not enough
        outputs.check_vary("net", [np.array([[1.0], [1.0], [1.0], [2.0]])])


def test_agreement_of_scores() -> None:
    ours = [np.array([[1.0, 4.0], [3.0, 2.0]]), np.array([1, 0])]
    theirs = [np.array([[1.0, 3.0], [1.0, 2.0]]), np.array([1, 1])]
    assert outputs.agreement(ours, theirs) == {"same_top1": 0.5, "max_difference": 0.5}
    assert outputs.agreement(ours, ours) == {"same_top1": 1.0, "max_difference": 0.0}


def test_agreement_of_a_label_alone() -> None:
    ours, theirs = [np.array([3, 1]), np.array([0.5, 0.5])], [np.array([3, 2], np.int32), np.array([0.5, 0.25])]
    assert outputs.agreement(ours, theirs) == {"same_top1": 0.5, "max_difference": 0.5}


def test_other_shapes_are_not_compared() -> None:
    one = [np.zeros((2, 3))]
    assert outputs.agreement(one, [np.zeros((2, 4))]) == {"same_top1": None, "max_difference": None}
    assert outputs.agreement(one, [*one, *one]) == {"same_top1": None, "max_difference": None}


def test_a_batch_axis_that_a_peer_adds_does_not_matter() -> None:
    ours = [np.array([[1.0, 4.0], [3.0, 2.0]])]
    assert outputs.agreement(ours, [ours[0][:, None]])["max_difference"] == 0.0

"""chrF: by hand where sacrebleu is installed, and one line where it is not."""

import pytest

from engine.base.errors import UserError
from evaluation.checks import chrf
from evaluation.data.questions import Answer, Question


def test_by_hand():
    """Answer "ab", reference "abc", n-grams of up to two letters exist in both.

    Precision is 2/2 and 1/1, recall 2/3 and 1/2. With the mean of the orders, P = 1, R = 7/12, and beta = 2:
    5 P R / (4 P + R) = (35/12) / (55/12) = 7/11.
    """
    pytest.importorskip("sacrebleu")
    assert chrf.closest("ab", ["abc"]) == pytest.approx(7 / 11)
    assert chrf.closest("ab", ["xyz", "abc", "q"]) == pytest.approx(7 / 11)
    assert chrf.closest("abc", ["abc"]) == 1.0
    asked = Question("q", 0, "p", "FILE:1", ("abc",), ("ab", "xyz"))
    near_right, near_wrong, far = ([Answer(text, 1, True)] for text in ("abc", "ab", "qq"))
    assert chrf.chrf(asked, near_wrong) == pytest.approx(7 / 11)
    assert chrf.chrf_diff(asked, near_wrong) == pytest.approx(7 / 11 - 1)
    assert [chrf.chrf_acc(asked, one) for one in (near_right, near_wrong, far)] == [1.0, 0.0, 0.0]


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setattr(chrf, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="task t is scored by chrF, and no_such_package is not installed: pip install"):
        chrf.check_package("t")

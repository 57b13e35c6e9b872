import pickle

import pytest
from phi3_onnx.configs import PackageError, ProviderError


def test_a_remedy_ends_the_line():
    error = ProviderError("no ONNX Runtime; it is gone", remedy="run: phi3-onnx doctor")
    assert str(error) == "no ONNX Runtime; it is gone; run: phi3-onnx doctor"
    assert (error.message, error.remedy) == ("no ONNX Runtime; it is gone", "run: phi3-onnx doctor")
    assert str(PackageError("damaged")) == "damaged"
    assert PackageError("damaged").remedy == ""


@pytest.mark.parametrize("remedy", ["", "run: phi3-onnx doctor"])
def test_an_error_comes_whole_out_of_another_process(remedy):
    error = pickle.loads(pickle.dumps(ProviderError("wrong", remedy=remedy)))
    assert (str(error), error.message, error.remedy) == (f"wrong; {remedy}".rstrip("; "), "wrong", remedy)


def test_a_message_is_one_line_that_orders_a_terminal_nothing():
    assert str(PackageError("a\nb \x1b[2J \ud800 é")) == "a b \\x1b[2J \\ud800 é"
    long = str(PackageError("x" * 10**6 + " is wrong"))
    assert len(long) < 2100 and long.endswith(" is wrong")

import pytest
from phi3_onnx.configs.sizes import size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (2_500, "2.50 kB"),
        (93_641_728, "93.6 MB"),
        (143_700_000, "144 MB"),
        (999_600_000, "1.00 GB"),
        (2_493_000_000, "2.49 GB"),
        (24 * 2**30, "25.8 GB"),
        (3.2e12, "3.20 TB"),
        (5e18, "5000 PB"),
    ],
)
def test_sizes_in_words(count: float, text: str) -> None:
    assert size(count) == text

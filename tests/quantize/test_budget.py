import numpy as np
import pytest
import torch
from phi3_onnx.configs import Quantization, UsageError, WeightScheme, parse_model_config
from phi3_onnx.quantize.budget import Budget, Option, allocate, measure_costs, parse_budget, within_budget
from phi3_onnx.quantize.packed import packed_shapes

SMALL, LARGE = WeightScheme(4, 32, symmetric=False), WeightScheme(8, 32, symmetric=False)


def option(scheme: WeightScheme, num_bytes: int, cost: float) -> Option:
    return Option(scheme, num_bytes, cost)


def test_bytes_go_where_they_save_most() -> None:
    options = {
        "cheap": [option(SMALL, 10, 1.0), option(LARGE, 20, 0.1)],
        "dear": [option(SMALL, 10, 9.0), option(LARGE, 20, 0.1)],
        "long": [option(SMALL, 100, 12.0), option(LARGE, 200, 0.1)],
    }

    def large(budget: int) -> set[str]:
        return {name for name, chosen in allocate(options, budget).items() if chosen.scheme == LARGE}

    assert large(120) == set()
    assert large(130) == {"dear"}
    assert large(140) == {"dear", "cheap"}
    assert large(230) == {"dear", "long"}
    assert large(240) == {"dear", "cheap", "long"}


def test_a_scheme_that_costs_more_and_helps_nothing_is_not_taken() -> None:
    options = {"flat": [option(SMALL, 10, 1.0), option(LARGE, 20, 1.0)]}
    assert allocate(options, 1000)["flat"].scheme == SMALL


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="at the least"):
        allocate({"only": [option(SMALL, 10, 1.0)]}, 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.0bpw", Budget(750, whole_file=False, text="6bpw")),
        ("8 bpw", Budget(1000, whole_file=False, text="8bpw")),
        ("105MB", Budget(105_000_000, whole_file=True, text="105mb")),
        ("1.5 MiB", Budget(1572864, whole_file=True, text="1.5mib")),
        *(
            (f"3{unit}", Budget(3 * size, whole_file=True, text=f"3{unit.lower()}"))
            for unit, size in (("B", 1), ("kB", 1000), ("GB", 1_000_000_000), ("KiB", 1024), ("GiB", 1_073_741_824))
        ),
    ],
)
def test_budgets_are_read(text: str, expected: Budget) -> None:
    assert parse_budget(text, 1000) == expected


@pytest.mark.parametrize("text", ["", "six", "6", "0bpw", "-1MB", "5 parsecs"])
def test_budgets_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"must look like 6\.0bpw"):
        parse_budget(text, 1000)


def test_a_whole_model_fits_into_its_budget() -> None:
    config = parse_model_config(
        {
            "model_type": "phi3",
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        }
    )
    head = WeightScheme(8, 64, symmetric=True)
    quantization = Quantization("gptq", SMALL, overrides=(("lm_head.weight", head),))
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).numpy() for name, shape in config.tensor_shapes().items()}

    def read(name: str, rows: slice | None) -> np.ndarray:
        return tensors[name][rows or slice(None)].copy()

    done: list[int] = []
    samples = np.arange(64).reshape(4, 16)
    costs = measure_costs(config, read, samples, (SMALL, LARGE), "float32", lambda layers, _: done.append(layers))
    assert done == [0, 1, 2]
    assert len(costs) == 8
    assert all(0 < each[LARGE] < each[SMALL] < 1 for each in costs.values()), "shares of the squared length"

    def total(quantization: Quantization) -> int:
        size = 0
        for name, shape in config.tensor_shapes().items():
            scheme = quantization.scheme_for(name)
            size += shape[0] * 4 if len(shape) == 1 else packed_shapes(shape[0], shape[1], scheme).num_bytes(4)
        return size

    small, large = total(quantization), total(Quantization("gptq", LARGE, overrides=(("lm_head.weight", head),)))
    budget = (small + large) // 2
    mixed = within_budget(config, quantization, costs, "float32", budget)
    assert small < total(mixed) <= budget
    assert mixed.scheme_for("lm_head.weight") == head
    assert {mixed.scheme_for(name) for name in costs} == {SMALL, LARGE}

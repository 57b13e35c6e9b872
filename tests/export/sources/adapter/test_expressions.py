import re

import pytest
from phi3_onnx.export.sources.adapter.expressions import check_expression


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(((.+)+)+)+$x",
        "(a|a)*b",
        "(a|ab)*b",
        "(a?b?)*c",
        "(?:x*){9}",
        ".*.*.*.*.*.*x",
        "(?=(a+)+)b",
        "((a{1,1000}){1,1000})",
        "(.*x){6}",
        "(" * 5000,
        "a{99999999999999}",
        "x" * 5000,
        "[",
    ],
    ids=lambda pattern: pattern[:20],
)
def test_what_may_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(re.error):
        check_expression(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.1\.mlp\.(gate_up|down)_proj",
        r"layers\.1\.self_attn\.qkv_proj",
        r"model\.layers\.(?:[0-9]|1[0-5])\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        # As one trainer writes it.
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp).*?(?:k_proj|v_proj|q_proj|o_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|k_proj|v_proj|o_proj)))",
        "down_proj",
        "(?!lm_head).*_proj",
    ],
)
def test_what_adapters_have_is_taken(pattern: str) -> None:
    check_expression(pattern)

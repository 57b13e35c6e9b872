"""Templates that never end, or take all memory: each is one line, within seconds."""

import time

import pytest
from phi3_onnx.configs import PackageError
from phi3_onnx.runtime.text import sandbox
from phi3_onnx.runtime.text.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hello"}]
HOSTILE = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested in a macro": "{% macro m() %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endmacro %}{{ m() }}",
    "center": "{{ 'x'.center(3000000000) }}",
    "center of a float": "{{ 'x'|center(3e9) }}",
    "ljust": "{{ 'x'.ljust(3000000000) }}",
    "indent": "{{ ('x\\n' * 9999)|indent(99999999) }}",
    "tojson": "{{ messages|tojson(indent=1000000000) }}",
    "a doubling string": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "one that is added": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "one that is replaced": "{% set n = namespace(s='xx') %}{% for i in range(9) %}"
    "{% set n.s = n.s.replace('x', n.s) %}{% endfor %}",
    "one that is joined": "{% set n = namespace(s='xx') %}{% for i in range(9) %}"
    "{% set n.s = n.s.join(n.s|list) %}{% endfor %}",
    "a product": "{{ 'x' * 9999999999 }}",
    "a power": "{{ 9 ** 999999999 }}",
    "a width": "{{ '%9999999999d' % 1 }}",
    "a width in braces": "{{ '{:9999999999}'.format(1) }}",
    "a width in a variable": "{{ '{:{}}'.format(1, 9999999999) }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "a division": "{{ 1 / 0 }}",
    "an overflow": "{{ 'x'.center(10 ** 30) }}",
    "a float's overflow": "{{ (10.0 ** 308 * 10)|int }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep brackets": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "20 MB": "x" * (20 << 20),
    "slices": "{% for a in messages|slice(1000000000) %}{% endfor %}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MOST_SECONDS", 5.0)
    resource = pytest.importorskip("resource", reason="Windows does not say what the peak was")
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PackageError, match=r"the chat template (fails|is not valid)") as raised:
        ChatTemplate(source, {}).render(MESSAGES)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    assert time.process_time() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 400 << 10, "KiB"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{% for m in messages %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{{ m.role }}{% endfor %}",
            "11Trueuser",
        ),
        ("{% for k, v in messages[0].items() if k != 'role' %}{{ k }}={{ v }}{% endfor %}", "content=hello"),
        ("{{ 'a' ~ 1 ~ none }}{{ ('b' ~ 'c')|upper }}", "a1NoneBC"),
        ("{{ '=' * 3 }}{{ 2 ** 3 }}{{ '%s-%d' % ('a', 1) }}{{ 7 % 4 }}", "===8a-13"),
        ("{{ messages|map(attribute='role')|join(', ') }}", "user"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ messages[0]|tojson(indent=1) }}", '{\n "role": "user",\n "content": "hello"\n}'),
        ("{{ 'x'.center(5) }}|{{ 'a-b'.split('-')[-1] }}{{ 'ab'.replace('a', 'c') }}", "  x  |bcb"),
        ("{% for x in missing %}{{ x }}{% else %}none{% endfor %}", "none"),
    ],
)
def test_ordinary_ones_are_as_they_were(source: str, text: str) -> None:
    assert ChatTemplate(source, {}).render(MESSAGES) == text

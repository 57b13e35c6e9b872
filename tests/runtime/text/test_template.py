import json

import pytest
from phi3_onnx.configs import PackageError, UsageError
from phi3_onnx.runtime.text.template import ChatTemplate, read_template

PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
BLOCKS = """
{%- set ns = namespace(found=false) -%}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% set ns.found = true %}
        {% continue %}
    {% endif %}
    {% generation %}
    {{- message.role.upper() }}: {{ message.content.split('</think>')[-1] | trim }}
    {% endgeneration %}
{% endfor %}
{% if tools %}{{ tools | tojson(indent=2) }}{% else %}{{ {'a': 'é <b>', 'b': [1, none]} | tojson }}{% endif %}
system: {{ ns.found }} {{ bos_token }}{{ unk_token }}
"""
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  <|end|> in text, 'quotes' & <tags>\n"},
    {"role": "assistant", "content": "<think>hm</think> 東京 🙂", "tool_calls": None},
    {"role": "user", "content": ""},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}]


def reference(template, tiny, **options):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny("plain"))
    return tokenizer.apply_chat_template(MESSAGES, chat_template=template, tokenize=False, **options)


def ours(template, tiny, **options):
    config = json.loads((tiny("plain") / "tokenizer_config.json").read_text())
    special = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    return ChatTemplate(template, special).render(MESSAGES, **options)


@pytest.mark.parametrize("template", [PHI3, BLOCKS], ids=["phi3", "blocks"])
@pytest.mark.parametrize("opened", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no-tools", "tools"])
def test_rendered_as_transformers_does(tiny, template, opened, tools):
    expected = reference(template, tiny, add_generation_prompt=opened, tools=tools)
    assert ours(template, tiny, add_generation_prompt=opened, tools=tools) == expected


def test_the_tiny_checkpoints_own_template(tiny):
    folder = tiny("plain")
    template = read_template(folder, {}, {"eos_token": "<|endoftext|>"})
    assert template is not None
    expected = reference(None, tiny, add_generation_prompt=False)
    assert template.render(MESSAGES, add_generation_prompt=False) == expected


def test_a_template_can_refuse_a_conversation():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(UsageError, match="refuses this conversation: roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", r"is not valid Jinja \(line 1\)"),
        ("{{ messages.nothing.more }}", "fails on this conversation"),
        ("{{ ''.__class__.__mro__ }}", "fails on this conversation"),
        ("{{ messages.append(1) }}", "fails on this conversation"),
    ],
    ids=["syntax", "undefined", "sandbox", "immutable"],
)
def test_a_broken_or_hostile_template_is_an_error(source, message):
    with pytest.raises(PackageError, match=message):
        ChatTemplate(source, {}).render(MESSAGES)


def test_no_messages_are_refused():
    with pytest.raises(UsageError, match="at least one message"):
        ChatTemplate(PHI3, {}).render([])


def test_strftime_now_gives_todays_date():
    from datetime import datetime

    year = ChatTemplate("{{ strftime_now('%Y') }}", {}).render(MESSAGES)
    assert abs(int(year) - datetime.now().year) <= 1  # a test may run at midnight of New Year's Eve


def test_where_templates_are_found(tmp_path):
    assert read_template(tmp_path, {}, {}) is None
    in_config = read_template(tmp_path, {"chat_template": "one"}, {})
    assert in_config is not None
    assert in_config.source == "one"
    several = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    named = read_template(tmp_path, {"chat_template": several}, {})
    assert named is not None
    assert named.source == "two"
    with pytest.raises(PackageError, match="tool_use and none called default"):
        read_template(tmp_path, {"chat_template": several[1:]}, {})
    (tmp_path / "chat_template.jinja").write_text("four")
    in_file = read_template(tmp_path, {"chat_template": "one"}, {})
    assert in_file is not None
    assert in_file.source == "four"

"""LangChain's own integration tests of chat models, with langchain-openai; each is a check."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from checks import MODEL, RESULT, URL, check

TESTS = f'''
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestServer(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {{
        "model": "{MODEL}", "base_url": "{URL}/v1", "api_key": "none", "temperature": 0, "max_tokens": 200,
        "timeout": 300, "stream_usage": True, "stream_chunk_timeout": 300,
        "frequency_penalty": 1,  # a small model repeats itself inside of a string until its tokens run out
    }}
    supports_image_inputs = False
'''

file = RESULT.with_name("test_langchain.py")
file.write_text(TESTS, encoding="utf-8")
report = RESULT.with_suffix(".xml")
# The clients of langchain-openai are kept from test to test, so all tests need one event loop.
options = ("asyncio_mode=auto", "asyncio_default_test_loop_scope=session", "asyncio_default_fixture_loop_scope=session")
command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"-o{option}" for option in options)]
subprocess.run([*command, str(file), f"--junitxml={report}"], check=False)
for case in ElementTree.parse(Path(report)).iter("testcase"):
    problem = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
    if case.find("skipped") is not None:
        continue

    @check("chat", case.get("name", ""))
    def told(problem=problem) -> None:
        if problem is not None:
            raise AssertionError((problem.get("message") or "")[:250])

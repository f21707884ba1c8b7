"""The adapters cost an installation without their tools nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.integrations.tools import tool

ROOT = Path(__file__).parents[2]
TOOLS = {
    *(
        "anthropic",
        "chromadb",
        "cohere",
        "haystack-ai",
        "langchain-core",
        "litellm",
        "llama-index-core",
        "llm",
        "lm-eval",
    ),
    *("mcp", "mteb", "openai", "sentence-transformers", "torch"),
}


def test_no_tool_is_among_the_core() -> None:
    tool("chromadb")  # where the tools are installed
    program = "import json, sys; sys.path.insert(0, 'scripts'); import packages; print(json.dumps(packages.packages()))"
    core = set(json.loads(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)))
    assert {"mlx-lm", "lancedb", "starlette"} <= core
    assert not core & TOOLS


def test_the_table_says_what_each_tool_adds() -> None:
    tool("chromadb")
    output = subprocess.check_output([sys.executable, "scripts/packages.py", "llm", "chroma"], cwd=ROOT, text=True)
    head, core, *others = [line.split() for line in output.splitlines()]
    assert head == ["packages", "added", "MB", "added"] and core[0] == "grit-mlx"
    assert [line[:2] for line in others] == [["+", "llm"], ["+", "chroma"]]
    assert all(int(line[3]) > 0 and int(line[2]) == int(core[1]) + int(line[3]) for line in others)

"""The README's transcript, line by line, against a real server of the demo model."""

from __future__ import annotations

import doctest
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_transcript_is_what_the_demo_model_says(demo_server):
    text = README.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", demo_server.url)
    assert demo_server.url in text
    test = doctest.DocTestParser().get_doctest(text, {}, "README.md", str(README), 0)
    assert len(test.examples) >= 5
    runner = doctest.DocTestRunner(verbose=False)
    said: list[str] = []
    result = runner.run(test, out=said.append)
    test.globs.get("client") and test.globs["client"].close()
    assert result.failed == 0, "".join(said)

"""Tokens to text and back: nothing is split, nothing is shown that may become a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import Engine, SamplingParams
from core.config import ModelConfig
from core.errors import RequestError
from core.text.chat_template import ChatTemplate
from core.text.detokenizer import Detokenizer, StopStrings
from core.text.tokenizer import Tokenizer
from plugins.sources.demo import DemoSource  # the bundled model is the real tokenizer at hand


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DemoSource().resolve(ModelConfig(model="demo")))


def test_streamed_text_is_the_whole_text(tokenizer):
    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=60))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        stream = Detokenizer(tokenizer, (), False, True)
        pieces = [stream.feed([i]) for i in ids]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids) == text

    check()


def test_half_a_character_waits_and_comes_out_at_the_end(tokenizer):
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    stream = Detokenizer(tokenizer, (), False, True)
    assert [stream.feed([i]) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert "\ufffd" in stream.finish()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab.", max_size=3), max_size=12),
    st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_do_not_depend_on_the_cuts(pieces, stops):
    whole = "".join(pieces)
    # the stop whose last character comes first is the one that ends the text
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    want = whole[: min(ends)[1]] if ends else whole
    finder = StopStrings(stops, include=False)
    shown = ""
    for piece in pieces:
        shown += finder.feed(piece)
        assert want.startswith(shown)
        if finder.found:
            break
    else:
        shown += finder.flush()
    if not ends:
        assert shown == want
    else:
        # pieces of several characters may complete two stops at once; the text still ends before the first of them
        assert finder.found is not None and shown == want


def test_stop_strings_end_the_request(checkpoint):
    with Engine(str(checkpoint("llama"))) as engine:
        params = dict(seed=4, max_tokens=40, temperature=2.0, ignore_eos=True)
        (free,) = engine.generate("hello", SamplingParams(**params))
        text = free.outputs[0].text
        stop = text[5:8]
        for include in (False, True):
            (cut,) = engine.generate("hello", SamplingParams(stop=[stop], include_stop_str_in_output=include, **params))
            answer = cut.outputs[0]
            end = text.index(stop) + (len(stop) if include else 0)
            assert (answer.text, answer.finish_reason, answer.stop_reason) == (text[:end], "stop", stop)
            streamed = "".join(
                o.outputs[0].text
                for o in engine.stream(
                    "hello", SamplingParams(stop=[stop], include_stop_str_in_output=include, **params)
                )
            )
            assert streamed == text[:end]
        assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_bytes_of_tokens_make_the_text(tokenizer):
    table = tokenizer.token_bytes()
    for text in ("hello world 12", "naïve 漢字 🙂", '{"a": [1, 2]}'):
        assert b"".join(table[i] for i in tokenizer.encode(text)) == text.encode()


def test_a_template_says_what_it_refuses():
    template = ChatTemplate(
        "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}"
    )
    assert template.render([{"role": "user", "content": "x"}]) == "x"
    with pytest.raises(RequestError, match="one at a time"):
        template.render([{"role": "user", "content": "x"}] * 2)
    with pytest.raises(RequestError, match="not valid Jinja"):
        ChatTemplate("{% if %}")
    sandboxed = ChatTemplate("{{ ''.__class__.__mro__ }}")
    with pytest.raises(RequestError):
        sandboxed.render([{"role": "user", "content": "x"}])


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("a\ud800b")

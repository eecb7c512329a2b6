"""Tokens to text and back: nothing is split, nothing is shown that may become a stop string."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import Engine, SamplingParams
from core.config import EngineConfig, ModelConfig
from core.errors import ConfigError, RequestError
from core.text.chat_template import ChatTemplate
from core.text.detokenizer import MAX_PENDING, Detokenizer, StopStrings, output_text
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


def test_a_template_of_a_file_is_read_when_the_options_are(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}!", encoding="utf-8")
    config = EngineConfig.from_options(chat_template=str(path))
    path.unlink()
    again = EngineConfig.from_options(**config.options())  # as a process that is started again has them
    assert again.model.chat_template == config.model.chat_template == "{{ messages[0].content }}!"
    for wrong in (str(path), str(tmp_path)):
        with pytest.raises(ConfigError, match="cannot be read as a file"):
            EngineConfig.from_options(chat_template=wrong)
    path.write_text("no template", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no template"):
        EngineConfig.from_options(chat_template=str(path))


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("a\ud800b")


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory) -> Tokenizer:
    """A sentencepiece vocabulary as Llama 2's and Mistral's: blanks as U+2581, rare characters as byte tokens."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Backend

    words = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.", "\u2581the", "\u2581cat", "\u2581a", "the", "\u2581\u2581"]
    names = ["</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    merges = [("\u2581", "a")]
    backend = Backend(
        models.BPE({n: i for i, n in enumerate(names)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    folder = tmp_path_factory.mktemp("sentencepiece")
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("kind", ["tokenizer", "byte_fallback"])
def test_any_tokens_stream_as_the_text_that_they_are_at_once(kind, request):
    # with byte fallback a run of bytes is one character after the other, until it goes wrong and is none
    which = request.getfixturevalue(kind)

    @settings(max_examples=400, deadline=None)
    @given(st.lists(st.integers(0, 290), max_size=24), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        stream = Detokenizer(which, (), False, skip)
        text = "".join(stream.feed([i]) for i in ids) + stream.finish()
        assert text == output_text(which, ids, skip)
        if "\ufffd" not in text:
            assert text == which.decode_output(ids, skip)

    check()


def test_an_output_keeps_the_blank_that_it_begins_with(byte_fallback):
    ids = byte_fallback.encode("the cat")
    cat = byte_fallback.backend.token_to_id("\u2581cat")
    stream = Detokenizer(byte_fallback, (), False, True)
    assert stream.feed([cat]) == output_text(byte_fallback, [cat], True) == byte_fallback.token_text(cat) == " cat"
    assert byte_fallback.decode(ids) == "the cat"


def test_what_never_becomes_a_character_does_not_gather(byte_fallback):
    half = byte_fallback.backend.token_to_id("<0xE4>")
    stream = Detokenizer(byte_fallback, (), False, True)
    assert "\ufffd" in "".join(stream.feed([half]) for _ in range(MAX_PENDING))
    end = byte_fallback.backend.token_to_id("</s>")
    begun = time.perf_counter()
    # what waits is decoded anew with every token: 20,000 of them once took 20 s
    assert "".join(stream.feed([end]) for _ in range(20_000)) == ""
    assert time.perf_counter() - begun < 2


def _with_byte_fallback(folder: Path, tokenizer: Tokenizer, target: Path) -> Path:
    shutil.copytree(folder, target)
    tokenizer.backend.save(str(target / "tokenizer.json"))
    return target


def test_one_request_of_broken_bytes_ends_alone(checkpoint, byte_fallback, tmp_path):
    """A letter, half a character, the letter again: the decoder's exception once ended the engine for everybody."""
    folder = _with_byte_fallback(checkpoint("llama"), byte_fallback, tmp_path / "model")
    ids = [byte_fallback.backend.token_to_id(t) for t in ("<0x57>", "<0xAA>", "the", "<0xE4>")]
    with Engine(str(folder)) as engine:
        params = SamplingParams(
            temperature=2.0, seed=3, max_tokens=64, ignore_eos=True, logit_bias=dict.fromkeys(ids, 100)
        )
        (whole,) = engine.generate("the", params)
        assert set(whole.outputs[0].token_ids) == set(ids)
        streamed = "".join(o.outputs[0].text for o in engine.stream("the", params))
        assert streamed == whole.outputs[0].text and "\ufffd" in streamed


def test_a_stop_string_within_min_tokens_is_text(checkpoint):
    with Engine(str(checkpoint("llama"))) as engine:
        params = dict(seed=4, max_tokens=40, temperature=2.0, ignore_eos=True)
        (free,) = engine.generate("hello", SamplingParams(**params))
        text, ids = free.outputs[0].text, free.outputs[0].token_ids
        stop = text[2:4]
        early = SamplingParams(stop=[stop], **params)
        assert len(engine.generate("hello", early)[0].outputs[0].token_ids) < 10
        late = SamplingParams(stop=[stop], min_tokens=10, **params)
        (answer,) = engine.generate("hello", late)[0].outputs
        assert len(answer.token_ids) > 10 and answer.token_ids == ids[: len(answer.token_ids)]
        assert "".join(o.outputs[0].text for o in engine.stream("hello", late)) == answer.text
        assert text.startswith(answer.text)


def test_a_stop_that_was_too_early_is_not_found_later():
    finder = StopStrings(["ab", "xabz"], include=False)
    assert finder.feed("xab", may_end=False) == "" and finder.found is None
    assert finder.feed("y") == "xaby" and finder.found is None
    assert finder.feed("ab") == "" and finder.found == "ab"


def test_the_end_is_no_text_even_with_special_tokens(checkpoint):
    with Engine(str(checkpoint("llama"))) as engine:
        free = SamplingParams(temperature=0, max_tokens=4, skip_special_tokens=False, logit_bias={0: 100})
        (answer,) = engine.generate("hello", free)[0].outputs
        assert (answer.token_ids, answer.text, answer.finish_reason) == ([0], "", "stop")
        assert [o.outputs[0].text for o in engine.stream("hello", free)] == [""]
        # an end that does not end is text
        (on,) = engine.generate("hello", msgspec.structs.replace(free, ignore_eos=True))[0].outputs
        assert on.text == "<|end|>" * 4

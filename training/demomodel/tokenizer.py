"""The byte-level BPE tokenizer: how text is cut before merging, its training, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from demomodel.chat_format import ADDED_TOKENS, END_OF_TEXT, IM_END, SPECIAL_TOKENS, TEMPLATE

VOCAB_SIZE = 4096

# A word is the same token behind a space, a quote or an underscore, so a model can copy it from one place to another
# without knowing how to spell it. Only these words, which nobody copies, have a token with the space in front.
_JOINED = """
a an and are as at be by can do for from has have how in is it it's me my no not of on one or so that the there this
to was what where which who will with you your
""".split()
_CUT = (
    rf" (?:{'|'.join(sorted(_JOINED, key=len, reverse=True))})(?!\p{{L}})"
    r"|\p{Lu}+\p{Ll}*|\p{Ll}+|[\p{L}\p{M}]+"
    r"|\p{N}"  # every digit alone: sums need the columns
    r"|[^\s\p{L}\p{N}]+(?: [^\s\p{L}\p{N}]+)*"  # JSON's punctuation holds spaces
    r"| |\s+"
)


def train(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
    )
    tokenizer.train_from_iterator((_without_tags(text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED_TOKENS])
    return tokenizer


def _without_tags(text: str) -> str:
    for tag in [*SPECIAL_TOKENS, *ADDED_TOKENS]:
        text = text.replace(tag, "\n")
    return text


def save(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as transformers 5 lays them out."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")

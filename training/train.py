"""Makes the demo model and its draft from nothing: text, tokenizer, weights, measurement, Hugging Face files.

python training/train.py --out DIR [--minutes 2.5] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import re
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from dialogs import KINDS, Dialog, dialog, is_right  # noqa: E402

from core.text.chat_template import ChatTemplate  # noqa: E402

VOCAB = 4096
LENGTH = 768
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
CHAT = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
DRAFT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ANSWER = re.compile(r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>", re.S)
TRAIN_SEED, TEST_SEED = 1, 987_654_321


def config_of(size: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        **size,
        "head_dim": size["hidden_size"] // size["num_attention_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
    }


# ---- text and tokens

_template: ChatTemplate | None = None


def render(d: Dialog, prompt_only: bool = False) -> str:
    global _template
    _template = _template or ChatTemplate((HERE / "chat_template.jinja").read_text())
    messages = d.messages[:-1] if prompt_only else d.messages
    return _template.render(messages, d.tools, add_generation_prompt=prompt_only)


def make_texts(job: tuple[int, int]) -> list[str]:
    seed, count = job
    rng = random.Random(seed)
    return [render(dialog(rng)) for _ in range(count)]


def train_tokenizer(texts: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(MARKS),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(m, normalized=False) for m in MARKS])
    return tokenizer


def pack(tokenizer: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of LENGTH tokens, and each token's weight in the loss: answers count, the rest a little."""
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    for encoding, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        ids = encoding.ids
        weight = [0.05] * len(ids)
        spans = [m.span() for m in ANSWER.finditer(text)]
        for i, (begin, _) in enumerate(encoding.offsets):
            if any(a <= begin < b for a, b in spans):
                weight[i] = 1.0
        if rows and len(rows[-1]) + len(ids) <= LENGTH:
            rows[-1] += ids
            weights[-1] += weight
        elif len(ids) <= LENGTH:
            rows.append(ids)
            weights.append(weight)
    full = torch.zeros(len(rows), LENGTH, dtype=torch.int32)
    mass = torch.zeros(len(rows), LENGTH, dtype=torch.float16)
    for i, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        full[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
        mass[i, : len(row)] = torch.tensor(weight, dtype=torch.float16)
    return full, mass


# ---- the model, with the names of the checkpoint's tensors


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, 1e-5).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.kv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        hidden = c["hidden_size"]
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(b, t, self.kv, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(b, t, self.kv, self.dim).transpose(1, 2)

        def rotate(y: torch.Tensor) -> torch.Tensor:
            first, second = y.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)

        group = self.heads // self.kv
        k, v = rotate(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = functional.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(c["hidden_size"]), Norm(c["hidden_size"])
        self.self_attn, self.mlp = Attention(c), MLP(c)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"])


class Llama(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.model = Decoder(c)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                scale = (
                    0.02 / math.sqrt(2 * c["num_hidden_layers"])
                    if name.endswith(("o_proj.weight", "down_proj.weight"))
                    else 0.02
                )
                nn.init.normal_(p, 0, scale)
        dim = c["head_dim"]
        self.inverse = 1.0 / c["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = positions[:, None, :, None] * self.inverse.to(ids.device)
        cos, sin = angles.cos(), angles.sin()
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)


def train(c: dict[str, Any], rows: torch.Tensor, mass: torch.Tensor, minutes: float, device: str, batch: int) -> Llama:
    torch.manual_seed(0)
    model = Llama(c).to(device)
    run = torch.compile(model) if device == "cuda" else model
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1.0,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    rows, mass = rows.to(device), mass.to(device)
    peak = 3e-3 if c["hidden_size"] > 200 else 5e-3
    generator = torch.Generator().manual_seed(0)
    begun: float | None = None
    step = 0
    while True:
        if step == 3:
            begun = time.perf_counter()  # compiling is not training
        share = 0.0 if begun is None else (time.perf_counter() - begun) / (60 * minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 100) * max(0.0, (1 - share)) ** 0.8
        index = torch.randint(len(rows), (batch,), generator=generator).to(device)
        ids, weight = rows[index].long(), mass[index][:, 1:].float()
        # now and then a row begins further on, so that late positions are known too
        offset = (torch.rand(batch, 1, generator=generator) < 0.3) * torch.randint(
            0, 2048 - LENGTH, (batch, 1), generator=generator
        )
        positions = torch.arange(LENGTH, device=device)[None].float() + offset.to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = run(ids[:, :-1], positions[:, :-1])
        loss = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (loss * weight.flatten()).sum() / weight.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0:
            print(f"step {step} share {share:.2f} loss {loss.item():.4f}", flush=True)
    print(f"{step} steps, {step * batch * LENGTH / 1e6:.0f} M tokens", flush=True)
    return model


# ---- measuring and writing


@torch.inference_mode()
def measure(model: Llama, tokenizer: Any, device: str, count: int) -> dict[str, float]:
    """Share of right greedy answers by kind, on prompts that training did not see."""
    rng = random.Random(TEST_SEED)
    shares = {}
    model = model.to(torch.bfloat16).float().eval()  # as it is stored
    for kind in KINDS:
        tests = [dialog(rng, kind) for _ in range(count)]
        if kind == "tools":
            tests = [t for t in (dialog(rng, kind) for _ in range(4 * count)) if t.key is not None][:count]
        prompts = [tokenizer.encode(render(t, prompt_only=True)).ids for t in tests]
        answers: list[list[int]] = [[] for _ in tests]
        live = list(range(len(tests)))
        for _ in range(140):
            longest = max(len(prompts[i]) + len(answers[i]) for i in live)
            ids = torch.zeros(len(live), longest, dtype=torch.long)
            ends = []
            for j, i in enumerate(live):
                row = prompts[i] + answers[i]
                ids[j, : len(row)] = torch.tensor(row)  # padding behind the end is not seen by what is before it
                ends.append(len(row) - 1)
            positions = torch.arange(longest)[None].float().expand(len(live), -1)
            with torch.autocast(device, torch.bfloat16):
                logits = model(ids.to(device), positions.to(device))
            chosen = logits[torch.arange(len(live)), torch.tensor(ends)].argmax(-1).tolist()
            for i, token in zip(list(live), chosen, strict=True):
                answers[i].append(token)
                if token == 2:
                    live.remove(i)
            if not live:
                break
        right = [is_right(t, tokenizer.decode(a)) for t, a in zip(tests, answers, strict=True)]
        shares[kind] = sum(right) / len(right)
        wrong = next(((t, a) for t, a, r in zip(tests, answers, right, strict=True) if not r), None)
        print(
            f"{kind}: {shares[kind]:.3f}",
            "" if wrong is None else repr((wrong[0].messages[-2:], tokenizer.decode(wrong[1]))),
            flush=True,
        )
    return shares


CARD = """---
license: apache-2.0
---
# {title}

A {count:.1f} M parameter Llama-architecture model, trained from scratch by `training/train.py` on text that the script
itself makes. It serves first runs, tests and tutorials; it knows nothing beyond that text.

Right answers to held-out prompts of the same kinds, greedy, {tests} a kind:

| kind | share right |
| --- | --- |
{rows}

Vocabulary: {vocab} byte-level BPE tokens, digits one by one. Context: 2048 tokens, trained on up to {length}.
"""


def export(
    model: Llama, c: dict[str, Any], tokenizer: Any, shares: dict[str, float], folder: Path, title: str, tests: int
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    count = sum(t.numel() for t in tensors.values()) / 1e6
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (HERE / "chat_template.jinja").read_text()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
    }
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.3, "top_p": 0.9}
    (folder / "chat_template.jinja").write_text(template)
    for name, value in (
        ("config.json", c),
        ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    rows = "\n".join(f"| {k.replace('_', ' ')} | {v:.1%} |" for k, v in shares.items())
    (folder / "README.md").write_text(
        CARD.format(title=title, count=count, tests=tests, rows=rows, vocab=VOCAB, length=LENGTH)
    )
    print(
        f"{title}: {count:.2f} M parameters, {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=2.5, help="of training, for the chat model; the draft takes a third"
    )
    parser.add_argument("--dialogs", type=int, default=800_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--tests", type=int, default=400, help="held-out prompts of each kind")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tar", action="store_true", help="also write one archive a model")
    args = parser.parse_args()
    begun = time.perf_counter()
    torch.set_float32_matmul_precision("high")
    jobs = [(TRAIN_SEED + i, args.dialogs // 64) for i in range(64)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        texts = [t for part in pool.imap(make_texts, jobs) for t in part]
    tokenizer = train_tokenizer(texts[:60_000])
    rows, mass = pack(tokenizer, texts)
    print(
        f"{len(texts)} dialogs, {rows.numel() / 1e6:.0f} M tokens in rows, {time.perf_counter() - begun:.0f} s",
        flush=True,
    )
    for name, size, title, minutes in (
        ("chat", CHAT, "Backplane demo model", args.minutes),
        ("draft", DRAFT, "Backplane demo draft model", args.minutes / 3),
    ):
        c = config_of(size)
        model = train(c, rows, mass, minutes, args.device, args.batch)
        shares = measure(model, tokenizer, args.device, args.tests)
        export(model, c, tokenizer, shares, args.out / name, title, args.tests)
        if args.tar:
            with tarfile.open(args.out / f"{name}.tar", "w") as archive:
                archive.add(args.out / name, name)
        print(f"{name} done after {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Train the bundled model: a 5.2M-parameter Llama with its own 4,096-piece byte-level BPE tokenizer.

Reads Python's own standard library, which is on every machine, and, where given, public-domain books and answers of an
Apache-2.0 model (JSON lines, plain or compressed). Writes safetensors, config and tokenizer in the Hugging Face layout.

    python scripts/train_tiny.py --books books.jsonl.xz --answers answers.jsonl.xz --work build/tiny

Everything is decided by ``--seed``: the documents, their order and, since a batch is a function of (seed, step), every
batch. A run that was stopped goes on from its last checkpoint in ``--work`` when the same command is given again.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import lzma
import random
import re
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, USER, ASSISTANT = "<|endoftext|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Share of the training rows that each kind of text gets. Code and edits come first: copying with small changes is what
# a drafted run profits from, and what a model this small has to be shown often.
SHARES = {"code": 0.40, "edits": 0.20, "books": 0.30, "answers": 0.10}
SEQUENCE = 1024
# The stdlib files that are tables rather than prose in Python.
SKIPPED = re.compile(r"/(site-packages|test|tests|idle_test|encodings|pydoc_data|lib2to3)/|/__phello__")


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """The JSON objects of a file with one object a line, plain, .gz or .xz."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def stdlib_files() -> list[str]:
    """The text of every module of the running Python's standard library, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not SKIPPED.search(path.as_posix()))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in files]
    return [text for text in texts if 200 < len(text) < 400_000]


def edit_pairs(files: list[str], rng: random.Random) -> list[str]:
    """Functions and classes beside themselves with one name changed: the shape of an edit, made from ``files``."""
    names: set[str] = set()
    blocks: list[str] = []
    for text in files:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        names.update(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and len(node.id) > 3)
        for node in tree.body:
            source = ast.get_source_segment(text, node) or ""
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and 150 < len(source) < 1400:
                blocks.append(source)
    pool = sorted(names)
    return [pair for block in blocks for _ in range(2) if (pair := edit_pair(block, pool, rng))]


def edit_pair(block: str, pool: list[str], rng: random.Random) -> str:
    """``block``, a request to rename one of its names, and the result; '' where no name occurs twice."""
    words = re.findall(r"\b[A-Za-z_]\w{2,}\b", block)
    repeated = sorted({word for word in words if words.count(word) > 1 and not word.startswith("__")})
    if not repeated:
        return ""
    old, new = rng.choice(repeated), rng.choice(pool)
    edited = re.sub(rf"\b{re.escape(old)}\b", new, block)
    return f"# Before:\n{block}\n\n# After renaming `{old}` to `{new}`:\n{edited}\n"


def documents(args: argparse.Namespace) -> dict[str, list[str]]:
    """The training documents of each kind, shuffled by the seed."""
    rng = random.Random(args.seed)
    code = stdlib_files()
    kinds = {"code": code, "edits": edit_pairs(code, rng)}
    if args.books:
        # Typesetting differs from book to book: one line a paragraph, one blank line between two.
        texts = (re.split(r"\n\s*\n", str(row["text"])) for row in read_rows(args.books))
        paragraphs = [[" ".join(block.split()) for block in text if block.strip()] for text in texts]
        kinds["books"] = ["\n\n".join(book[i : i + 200]) for book in paragraphs for i in range(20, len(book), 200)]
    if args.answers:
        wanted = re.compile(args.answers_model)
        kinds["answers"] = [
            f"{USER}\n{row['prompt']}\n{ASSISTANT}\n{row['output']}\n"
            for row in read_rows(args.answers)
            if wanted.search(str(row["model"])) and isinstance(row["prompt"], str)
        ]
    for shuffled in kinds.values():
        rng.shuffle(shuffled)
    return kinds


def train_tokenizer(kinds: dict[str, list[str]], path: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 4,096 pieces, in the Hugging Face layout under ``path``."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # digits one by one, spaces in runs: indentation is one piece
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    sample = (text[:20_000] for texts in kinds.values() for text in texts)
    bpe.train_from_iterator(sample, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, model_max_length=SEQUENCE)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return tokenizer


def encode(kinds: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast, work: Path) -> None:
    """Write each kind as two token streams under ``work``: one document in fifty is held out."""
    for kind, texts in kinds.items():
        held_out: list[np.ndarray] = []
        trained: list[np.ndarray] = []
        for i in tqdm(range(0, len(texts), 256), desc=f"tokens of {kind}"):
            for j, encoding in enumerate(tokenizer.backend_tokenizer.encode_batch(texts[i : i + 256])):
                ids = np.array([*encoding.ids, tokenizer.eos_token_id], dtype=np.uint16)
                (held_out if (i + j) % 50 == 0 else trained).append(ids)
        np.save(work / f"{kind}.valid.npy", np.concatenate(held_out))
        np.save(work / f"{kind}.train.npy", np.concatenate(trained))


def load_streams(work: Path, split: str) -> dict[str, np.ndarray]:
    """Token streams by kind, memory-mapped."""
    return {kind: np.load(path, mmap_mode="r") for kind in SHARES if (path := work / f"{kind}.{split}.npy").exists()}


def rows(stream: np.ndarray, count: int, rng: np.random.Generator) -> torch.Tensor:
    """``count`` windows of the stream, [count, SEQUENCE]."""
    starts = rng.integers(0, len(stream) - SEQUENCE, count)
    return torch.from_numpy(np.stack([stream[s : s + SEQUENCE] for s in starts]).astype(np.int64))


def batch(streams: dict[str, np.ndarray], size: int, seed: int, step: int) -> torch.Tensor:
    """The batch of one step, [size, SEQUENCE]: a function of the seed and the step alone."""
    rng = np.random.default_rng((seed, step))
    weights = np.array([SHARES[kind] for kind in streams])
    counts = rng.multinomial(size, weights / weights.sum())
    return torch.cat([rows(stream, n, rng) for stream, n in zip(streams.values(), counts, strict=True) if n])


def build_model(vocabulary: int, end: int) -> LlamaForCausalLM:
    """5.2M parameters: 6 layers of width 256, 4 heads on 2 key-value heads, tied embeddings."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=SEQUENCE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak rate: up over 100 steps, level, and down to a twentieth over the last 40 %."""
    return min((step + 1) / 100, 1.0, max((steps - step) / (0.4 * steps), 0.05))


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, work: Path, device: str) -> dict[str, float]:
    """Mean cross-entropy, nats per token, on held-out text of each kind."""
    model.eval()
    losses = {}
    for kind, stream in load_streams(work, "valid").items():
        if len(stream) > SEQUENCE:
            ids = rows(stream, 16, np.random.default_rng(0)).to(device)
            with torch.autocast(device, dtype=torch.bfloat16):
                losses[kind] = round(float(model(input_ids=ids, labels=ids).loss), 3)
    model.train()
    return losses


def train(args: argparse.Namespace, model: LlamaForCausalLM) -> dict[str, object]:
    """Train from the last checkpoint, or from the start; what was seen and the last losses."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()  # type: ignore[arg-type]  # a string is a device
    optimizers = build_optimizers(model, args.rate)
    checkpoint, start = args.work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = state["step"]
    streams = load_streams(args.work, "train")
    forward = torch.compile(model) if args.compile else model
    log = (args.work / "log.jsonl").open("a")
    began = time.monotonic()
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="training", mininterval=5)
    for step in bar:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * learning_rate(step, args.steps)
        ids = batch(streams, args.batch, args.seed, step).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            speed = (step + 1 - start) * args.batch * SEQUENCE / (time.monotonic() - began)
            line = {"step": step + 1, "tokens_per_second": round(speed), **held_out_loss(model, args.work, device)}
            print(json.dumps(line), file=log, flush=True)
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    return {"steps": args.steps, "tokens": args.steps * args.batch * SEQUENCE} | held_out_loss(model, args.work, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, help="JSON lines with a `text` each")
    parser.add_argument("--answers", type=Path, help="JSON lines with `model`, `prompt` and `output`")
    parser.add_argument("--answers-model", default="^falcon-", help="regular expression: whose answers may be used")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="token streams, checkpoint, log, result")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=8, help=f"rows of {SEQUENCE} tokens")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; wants a C++ compiler on a CPU")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    result = args.work / "model"
    if not (result / "tokenizer.json").exists():
        args.work.mkdir(parents=True, exist_ok=True)
        kinds = documents(args)
        encode(kinds, train_tokenizer(kinds, result), args.work)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(result)
    model = build_model(len(tokenizer), tokenizer.eos_token_id)
    summary = train(args, model)
    model.eval().to("cpu", torch.bfloat16).save_pretrained(result)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

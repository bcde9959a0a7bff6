"""A random model of a few thousand parameters, saved as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from krill_tui.training.tiny import build_model, build_tokenizer

TEXTS = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a drawer 2 and a fridge 1.\n",
    "Your task is to: put a mug in cabinet.\nTask: heat some egg and put it in diningtable.\n",
    "<think>mug: cabinet [gen_003]</think><action>go to cabinet 1</action>",
    "<think>now look into it</think><action>open drawer 2</action>",
    "Admissible actions:\ngo to cabinet 1\ngo to fridge 1\nopen drawer 2\ntake mug 1 from cabinet 1\nlook\n",
)


def build_tiny_model(folder: Path, *, vocab: int = 400, hidden: int = 32, context: int = 512) -> Path:
    """Write the model and its tokenizer into `folder`; the same bytes each time."""
    tokenizer = build_tokenizer(TEXTS * 20, vocab)
    torch.manual_seed(0)
    model = build_model(
        len(tokenizer), hidden, layers=2, heads=4, kv_heads=2, mlp=2 * hidden, context=context
    )
    with torch.no_grad():
        # Its head is frozen when adapters train: as large as a trained one's, it can say something with certainty.
        model.model.embed_tokens.weight.mul_(10)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder

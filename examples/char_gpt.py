"""A character-level GPT learns to write Python from the source of Python's own library, watched by resmon.

The text is what every Python installation has; the network is nanoGPT's (Karpathy), with about 0.8 million parameters. The loss
falls from 4.6 to 2.4 within the first hundred steps.

    python examples/char_gpt.py --seconds 180
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import resmon


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.query_key_value(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, length: int = 128, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "mlp.2.weight")):  # GPT-2: the stream's variance stays 1 over the depth
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, text: Tensor) -> Tensor:
        x = self.tokens(text) + self.positions.weight[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def library_source() -> str:
    """The modules of Python's library as one text; what is rare in it (other scripts, box drawing) becomes a question mark."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "\n".join(module.read_text(encoding="utf-8", errors="replace") for module in modules)
    return text.encode("ascii", errors="replace").decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=180.0, help="stop after so many seconds (180)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="stop after so many steps, if that is earlier")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="characters that the model sees at once (128)")
    parser.add_argument("--run", default="char-gpt", help="name of the run, its folder in runs/ (char-gpt)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    text = library_source()
    characters = sorted(set(text))
    codes = torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8).long()
    code_of = torch.zeros(128, dtype=torch.long)
    code_of[[ord(c) for c in characters]] = torch.arange(len(characters))
    codes = code_of[codes]
    print(f"{len(codes):,} characters, {len(characters)} different ones")

    model = GPT(len(characters), arguments.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    window = torch.arange(arguments.length + 1)

    with resmon.watch(model, optimizer, run=arguments.run) as monitor:  # the one line
        end = time.monotonic() + arguments.seconds
        for step in range(arguments.steps):
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * min(1.0, (step + 1) / 100)  # warm-up
            starts = torch.randint(len(codes) - arguments.length - 1, (arguments.batch_size, 1))
            batch = codes[starts + window]
            loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            monitor.log(loss=loss)  # and what else is worth seeing
            if step % 100 == 0:
                print(f"step {step}, loss {loss:.3f}", flush=True)
            if time.monotonic() >= end:
                break

    prompt = "def "
    written = torch.tensor([[characters.index(c) for c in prompt]])
    with torch.no_grad():
        for _ in range(300):
            likely = model(written[:, -arguments.length :])[:, -1].softmax(-1)
            written = torch.cat([written, torch.multinomial(likely, 1)], 1)
    print(f"step {step}, loss {loss:.3f}; it writes:\n" + "".join(characters[i] for i in written[0]))


if __name__ == "__main__":
    main()

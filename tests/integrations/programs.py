"""Scripts that know nothing of resmon, as somebody else would write them."""

from __future__ import annotations

PLAIN = """
import argparse, hashlib, random, sys
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--run", default="mine")
options = parser.parse_args()

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 16))

    def forward(self, x):
        return x + self.body(x)

if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 2))
    with torch.no_grad():
        net(torch.randn(2, 8))
    opt = torch.optim.AdamW(net.parameters(), 0.01)
    for i in range(options.steps):
        opt.zero_grad()
        total = 0.0
        for _ in range(2):
            loss = net(torch.randn(4, 8)).pow(2).mean() / 2
            loss.backward()
            total += loss.item()
        opt.step()
        print("loss", i, total)
        if i == 6:
            raise ValueError("seven")
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()
    print(options.run, __name__, sys.argv, sys.modules["__main__"].Block is Block, digest, random.random() < 2)
    sys.exit(3 if options.steps == 3 else 0)
"""

TRAINER = """
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

class Numbers(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        x = torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": x, "labels": x}

model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16))
arguments = TrainingArguments(
    output_dir="out", max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_strategy="no",
    report_to=[], use_cpu=True, disable_tqdm=True,
)
Trainer(model, arguments, train_dataset=Numbers()).train()
"""

LIGHTNING = """
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        return x + self.body(x)

class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 1))

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)

data = DataLoader(TensorDataset(torch.randn(24, 8), torch.randn(24, 1)), 4)
trainer = pl.Trainer(
    max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu"
)
trainer.fit(Regression(), data)
"""

SEVERAL_PROCESSES = """
import os, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        return x + self.body(x)

def train(rank, port):
    if port:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), Block(), Block(), nn.Linear(16, 2)))
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for x in torch.utils.data.DataLoader(torch.randn(24, 8), 4, num_workers=1):
        opt.zero_grad()
        net(x).pow(2).mean().backward()
        opt.step()
    dist.destroy_process_group()

if __name__ == "__main__":
    how, port = sys.argv[1:]
    if how == "torchrun":
        train(None, None)
    elif how == "spawn":
        mp.spawn(train, (port,), nprocs=2)
    else:
        children = [mp.get_context("fork").Process(target=train, args=(rank, port)) for rank in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
"""

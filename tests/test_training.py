"""What training runs on: processes, checkpoints, optimisers, averages, trainers. Beside plain training each time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributed_worker
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rnn_ext


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_train_as_one(way: str, tmp_path: Path) -> None:
    worker = Path(distributed_worker.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(worker), way, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    alone = distributed_worker.fresh()
    before = [p.clone() for p in alone.parameters()]
    distributed_worker.train(alone)
    assert all((p - q).abs().max() > 1e-2 for p, q in zip(before, alone.parameters(), strict=True))
    together = torch.load(tmp_path / "weights.pt")
    torch.testing.assert_close(together, dict(alone.state_dict()))
    # What two processes wrote in shards, one reads whole.
    read = {"model": distributed_worker.fresh().state_dict()}
    dcp.load(read, checkpoint_id=tmp_path / "shards", no_dist=True)
    torch.testing.assert_close(read["model"], together, rtol=0, atol=0)


@pytest.mark.parametrize("other", [rnn_ext.RNN, nn.RNN])
def test_safetensors(other: type[nn.Module], tmp_path: Path) -> None:
    model = rnn_ext.RNN(3, 4, 2, bidirectional=True)
    safetensors.torch.save_model(model, str(tmp_path / "weights"))
    read = other(3, 4, 2, bidirectional=True)
    safetensors.torch.load_model(read, str(tmp_path / "weights"))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(read(x), model(x))
    # And the other way, by names.
    safetensors.torch.save_file(read.state_dict(), tmp_path / "weights")
    fresh = rnn_ext.RNN(3, 4, 2, bidirectional=True)
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "weights"))
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)


def trained(make_optimizer: Callable[[Any], torch.optim.Optimizer], after_step: Any = None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": rnn_ext.RNN(3, 6, 2, bidirectional=True), "head": nn.Linear(12, 2)})
    optimizer = make_optimizer(model.parameters())
    for _ in range(5):
        x, target = torch.randn(7, 4, 3), torch.randn(7, 4, 2)
        optimizer.zero_grad()
        nn.functional.mse_loss(model["head"](model["rnn"](x)[0]), target).backward()
        optimizer.step()
        if after_step is not None:
            after_step(model)
    return model


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad], ids=lambda o: o.__name__
)
def test_fused_optimizers(optimizer: type[torch.optim.Optimizer]) -> None:
    fused, plain = (trained(lambda p, f=f: optimizer(p, lr=0.05, fused=f)) for f in (True, False))
    torch.testing.assert_close(dict(fused.state_dict()), dict(plain.state_dict()))


def test_exponential_moving_average() -> None:
    decay, averages = 0.8, list[AveragedModel]()
    by_hand: dict[str, Tensor] = {}

    def update(model: nn.Module) -> None:
        if not averages:
            averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)))
        averages[0].update_parameters(model)
        for name, p in model.named_parameters():
            old = by_hand.get(name, p.detach())
            by_hand[name] = decay * old + (1 - decay) * p.detach()

    model = trained(lambda p: torch.optim.Adam(p, lr=0.05), update)
    average = averages[0].module
    torch.testing.assert_close({n: p.detach() for n, p in average.named_parameters()}, by_hand)
    x = torch.randn(7, 4, 3)
    reference = nn.RNN(3, 6, 2, bidirectional=True)
    reference.load_state_dict({n.removeprefix("rnn."): p for n, p in by_hand.items() if n.startswith("rnn.")})
    torch.testing.assert_close(average["rnn"](x), reference(x))
    assert not torch.allclose(average["rnn"](x)[0], model["rnn"](x)[0])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_lightning(tmp_path: Path) -> None:
    import lightning  # takes seconds, which only this test shall

    class Adder(lightning.LightningModule):
        """Learns to add up a sequence."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = rnn_ext.RNN(1, 16, nonlinearity="relu", batch_first=True), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[1][-1])

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            loss = nn.functional.mse_loss(self(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    x = torch.rand(256, 6, 1)
    data = torch.utils.data.TensorDataset(x, x.sum(1))
    trainer = lightning.Trainer(
        max_epochs=15,
        accelerator="cpu",
        gradient_clip_val=1.0,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Adder()
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=32, shuffle=True))
    assert trainer.callback_metrics["loss"] < 0.1 * x.sum(1).var()
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    read = Adder.load_from_checkpoint(checkpoint)
    torch.testing.assert_close(read(x), model(x))

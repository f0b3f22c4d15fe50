"""The losses in other people's training loops: resumed bit for bit, and in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = """
import torch

torch.manual_seed(0)
images, labels = torch.randn(300, 64), torch.arange(300) % 10


def same(first, second):
    assert first.keys() == second.keys() and any("history" in key for key in first)
    return all(torch.equal(first[key], second[key]) for key in first)
"""
HUGGING_FACE = """
from huggingface_trainer import make_trainer

options = dict(num_train_epochs=3, save_steps=2, save_strategy="steps", use_cpu=True,
               disable_tqdm=True)
whole = make_trainer("whole", images, labels, **options)
whole.train()
expected = whole.model.state_dict()
assert whole.model.loss.epoch == 2 and (whole.model.loss.history != 0).all()
for step in (4, 6):  # in the middle of epoch 1, and at its end
    torch.manual_seed(step)
    resumed = make_trainer("resumed", images, labels, **options)
    resumed.train(resume_from_checkpoint=f"whole/checkpoint-{step}")
    assert resumed.model.loss.epoch == 2 and same(resumed.model.state_dict(), expected), step
others = [{"images": torch.zeros(64), "labels": 0, "index": 999}]
assert whole.evaluate(others)["eval_loss"] > 0 and same(whole.model.state_dict(), expected)
print("the same")
"""
LIGHTNING = """
import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_module import Classifier


def fit(checkpoint):
    module = Classifier(images, labels)  # with other weights each time
    keep = ModelCheckpoint("kept", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, callbacks=[keep], log_every_n_steps=1,
        use_distributed_sampler=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    return module


whole = fit(None)
assert whole.loss.epoch == 2 and (whole.loss.history != 0).all()
resumed = fit("kept/epoch=1-step=6.ckpt")  # at the end of epoch 1
assert resumed.loss.epoch == 2 and same(resumed.state_dict(), whole.state_dict())
print("the same")
"""
TWO_PROCESSES = """
import os
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from discrimloss import DiscrimLoss
from discrimloss.distributed import gather
from discrimloss.task import cross_entropy


def train(rank, count):
    torch.set_num_threads(1)
    if count > 1:  # without the variables of torchrun
        dist.init_process_group("gloo", init_method="file://" + os.path.abspath("meet"),
                                rank=rank, world_size=count)
    torch.manual_seed(1)
    model, loss = torch.nn.Linear(64, 10), DiscrimLoss(cross_entropy, 301)
    if count > 1:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    samples = TensorDataset(torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]]),
                            torch.arange(301))
    sampler = DistributedSampler(samples, 2, rank, drop_last=True)
    shares = [list(DistributedSampler(samples, 2, rank, drop_last=True)) for rank in (0, 1)]
    together = [index for pair in zip(*shares) for index in pair]
    loader = DataLoader(samples, batch_size=50, sampler=sampler)
    if count == 1:
        loader = DataLoader(samples, batch_size=100, sampler=together)
    for epoch in range(2):
        loss.set_epoch(epoch)
        for inputs, target, index in loader:
            optimizer.zero_grad()
            loss(*gather(model(inputs), target, index)).mean().backward()
            optimizer.step()
    weight = getattr(model, "module", model).weight.detach()
    torch.save([loss.state_dict() | {"weight": weight}], f"{count}-{rank}.pt")


if __name__ == "__main__":
    train(0, 1)
    mp.spawn(train, (2,), nprocs=2)
    (alone,), (first,), (second,) = (torch.load(f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert same(first, second) and (first["history"] != 0).sum() == 300
    for key, value in alone.items():
        torch.testing.assert_close(value, first[key], rtol=1e-5, atol=1e-6)
    print("the same")
"""


def run(code, folder):
    """Run code where ``discrimloss`` and the examples can be imported, and nothing else of ours."""
    (folder / "discrimloss").symlink_to(ROOT / "losses")
    (folder / "loop.py").write_text(DATA + code)
    path = os.pathsep.join([str(folder), str(ROOT / "examples")])
    return subprocess.run(
        [sys.executable, "loop.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


def test_processes_of_a_group_of_others_keep_the_state_of_one(tmp_path):
    done = run(TWO_PROCESSES, tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["the same"]), done.stderr


@pytest.mark.parametrize("code", [HUGGING_FACE, LIGHTNING], ids=["hugging_face", "lightning"])
def test_a_loop_of_others_goes_on_bit_for_bit(code, tmp_path):
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["the same"]), done.stderr

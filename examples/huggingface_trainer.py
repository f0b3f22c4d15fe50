"""DiscrimLoss in Hugging Face's Trainer: as a part of the model, and so of its checkpoints.

Several processes need dataloader_drop_last=True: the Trainer repeats samples to fill a batch. Needs
pip install . transformers accelerate. Run it as a file: with -m, our datasets/ would hide theirs.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from discrimloss import DiscrimLoss
from discrimloss.distributed import gather
from discrimloss.task import cross_entropy


class WithLoss(nn.Module):
    def __init__(self, network, loss):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, images, labels, index):
        logits = self.network(images)
        if self.training:  # on the whole batch, which several processes may share
            losses = self.loss(*gather(logits, labels, index))
        else:  # of other samples the loss knows nothing
            losses = cross_entropy(logits, labels)
        return {"loss": losses.mean(), "logits": logits}


class SetEpoch(TrainerCallback):
    def on_epoch_begin(self, args, state, control, model=None, **others):
        model.loss.set_epoch(int(state.epoch))


def make_trainer(folder, images, labels, **options):
    triples = zip(images, labels, range(len(labels)), strict=True)
    samples = [dict(images=image, labels=label, index=i) for image, label, i in triples]
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    model = WithLoss(network, DiscrimLoss(cross_entropy, num_samples=len(samples), q=10))
    options = {"num_train_epochs": 20, "learning_rate": 0.01, "report_to": "none"} | options
    arguments = TrainingArguments(folder, per_device_train_batch_size=128, **options)
    return Trainer(model, arguments, train_dataset=samples, callbacks=[SetEpoch()])


if __name__ == "__main__":
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    trainer = make_trainer("runs/huggingface", images.float() / 16, labels)
    trainer.train()
    print("most suspicious:", trainer.model.loss.sample_score().topk(10).indices.tolist())

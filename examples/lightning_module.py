"""DiscrimLoss in a LightningModule: as a part of the module, and so of its checkpoints.

The sampler is a DistributedSampler for one process too: it draws anew in each epoch, also after a
resume; and drop_last=True keeps it from repeating samples. Needs pip install . lightning.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from discrimloss import DiscrimLoss
from discrimloss.distributed import gather
from discrimloss.task import cross_entropy


class Classifier(lightning.LightningModule):
    def __init__(self, images, labels):
        super().__init__()
        self.samples = TensorDataset(images, labels, torch.arange(len(labels)))
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.loss = DiscrimLoss(cross_entropy, num_samples=len(labels), q=10)

    def train_dataloader(self):
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.samples, processes, rank, drop_last=True)
        return DataLoader(self.samples, batch_size=128 // processes, sampler=sampler)

    def on_train_epoch_start(self):
        self.loss.set_epoch(self.current_epoch)

    def training_step(self, batch, batch_idx):
        images, labels, index = batch
        # on the whole batch, which several processes may share
        return self.loss(*gather(self.network(images), labels, index)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


if __name__ == "__main__":
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    model = Classifier(images.float() / 16, labels)
    trainer = lightning.Trainer(
        max_epochs=20, use_distributed_sampler=False, default_root_dir="runs/lightning"
    )
    trainer.fit(model)
    print("most suspicious:", model.loss.sample_score().topk(10).indices.tolist())

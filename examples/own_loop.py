"""DiscrimLoss in your own training loop: all it needs is the index of each sample."""

import torch
from sklearn.datasets import load_digits

from losses import DiscrimLoss
from losses.task import cross_entropy

torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images, wrong = images.float() / 16, torch.rand(len(labels)) < 0.4
given = torch.where(wrong, (labels + torch.randint(1, 10, labels.shape)) % 10, labels)

model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loss_function = DiscrimLoss(cross_entropy, num_samples=len(images), q=30)

for epoch in range(60):
    loss_function.set_epoch(epoch)
    for index in torch.randperm(len(images)).split(128):
        loss = loss_function(model(images[index]), given[index], index).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

suspects = loss_function.sample_score().topk(int(wrong.sum())).indices
correct = (model(images).argmax(1) == labels).float().mean()
print(f"the true label is predicted for {100 * correct:.1f} % of the images")
print(f"{100 * wrong[suspects].float().mean():.1f} % of the top suspects have a wrong label")

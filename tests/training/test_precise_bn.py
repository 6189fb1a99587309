"""PreciseBN: statistics of the batches pooled, and a training run that does not know of it."""

import pytest
import torch
from torch import nn

from headstart.model.norm import norm
from headstart.tasks.predict import load_trained
from headstart.training.averages import holding, precise_statistics
from headstart.training.rows import read_rows
from headstart.training.run import train
from headstart.weights import checkpoint
from tiny import tiny_classifier, tiny_recipe


class Net(nn.Module):
    """Two norms, the second of which may be given padding."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.second = norm(kind, 3), norm(kind, 3)

    def forward(self, batch):
        x, weight = batch
        self.second(x, weight)
        return self.first(x)


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_statistics_are_those_of_all_batches_together_and_the_model_stays_as_it_was(kind):
    torch.manual_seed(0)
    model = Net(kind)
    nn.init.uniform_(model.first.running_mean)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = [torch.randn(4, 3, 5, 5) * (1 + shift) + shift for shift in range(3)]
    # The second norm sees the first two samples of a batch, and nothing at all of the last batch.
    weights = [torch.tensor([1.0, 1, 0, 0])] * 2 + [torch.zeros(4)]
    found = precise_statistics(model, model, zip(images, weights), freeze="none")
    for name, seen in (("first", images), ("second", [x[:2] for x in images[:2]])):
        joined, num = torch.cat(seen), seen[0][:, 0].numel()
        torch.testing.assert_close(found[f"{name}.running_mean"], joined.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        # torch keeps the unbiased variance of each batch: that much more than the pooled one
        excess = torch.stack([x.var((0, 2, 3), correction=0) for x in seen]).mean(0) / (num - 1)
        wanted = joined.var((0, 2, 3), correction=0) + excess
        torch.testing.assert_close(found[f"{name}.running_var"], wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.first.momentum == model.second.momentum == 0.1
    with holding(model, found):
        assert torch.equal(model.first.running_mean, found["first.running_mean"])
    assert torch.equal(model.first.running_mean, before["first.running_mean"])


def test_a_layer_that_saw_nothing_keeps_its_running_averages():
    model = Net("batch")
    found = precise_statistics(model, model, [(torch.randn(4, 3, 5, 5), torch.zeros(4))], freeze="none")
    assert torch.equal(found["second.running_mean"], model.second.running_mean)
    assert torch.equal(found["second.running_var"], model.second.running_var)


def test_it_changes_what_is_evaluated_and_nothing_in_training(data_root, tmp_path):
    options = {"model__norm": "batch", "train__base": "2 steps"}
    plain = train(tiny_recipe(data_root, **options), tmp_path)
    precise = train(tiny_recipe(data_root, **options, evaluate__precise_bn=2, evaluate__every="1 steps"), tmp_path)
    ends = [read_rows(run.directory / "rows.jsonl")[-1]["hash"] for run in (plain, precise)]
    assert plain.directory != precise.directory and ends[0] == ends[1]
    state = checkpoint.load(precise.checkpoint)
    own, statistics = state["model"], state["statistics"]
    assert statistics and all(not torch.equal(own[name], value) for name, value in statistics.items() if "var" in name)
    assert not checkpoint.load(plain.checkpoint)["statistics"]
    used = load_trained(precise.checkpoint).model.state_dict()  # what evaluation saw is what predicts
    assert all(torch.equal(used[name], value) for name, value in (own | statistics).items())


def test_where_nothing_moves_it_is_refused(data_root, tmp_path):
    recipe = tiny_classifier(
        data_root, model__norm="batch", start__freeze="backbone", evaluate__precise_bn=3,
        start__kind="backbone", start__weights="none.pt",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"evaluate\.precise_bn: 3, but start\.freeze 'backbone' leaves no BatchNorm"):
        from headstart.tasks import make_task
        from headstart.training.loop import periods

        periods(recipe, make_task(recipe))

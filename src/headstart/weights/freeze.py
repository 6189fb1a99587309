"""Freezing by an explicit policy, counted from the input of the backbone up."""

from torch import nn

from headstart.model.backbones import STAGES

POLICIES = ("none", *STAGES, "backbone")


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of a detector or classifier; a bare backbone is its own."""
    return model.backbone if hasattr(model, "backbone") else model


def frozen_modules(model: nn.Module, policy: str) -> list[nn.Module]:
    """The modules that `policy` freezes: nothing, everything up to and including a part, or the whole backbone.

    ValueError for an unknown policy (numbers have meant different things in different trainers, so there are none), and
    for one that would freeze nothing in this backbone.
    """
    if policy not in POLICIES:
        raise ValueError(f"start.freeze: unknown policy {policy!r}, expected one of {', '.join(POLICIES)}")
    if policy == "none":
        return []
    backbone = backbone_of(model)
    if policy == "backbone":
        return [backbone]
    names = STAGES[: STAGES.index(policy) + 1]
    chosen = [module for name in names for module in backbone.parts()[name]]
    if not chosen:
        raise ValueError(f"start.freeze: {policy!r} holds no layers in this backbone, expected 'none' or 'backbone'")
    return chosen


def freeze(model: nn.Module, policy: str) -> tuple[str, ...]:
    """Stop the gradients of what `policy` names; returns the parameters' names, in the model's order.

    Works on a detector, a classifier or a bare backbone. Batch statistics are held still by `set_train_mode`.
    """
    frozen = {id(parameter) for module in frozen_modules(model, policy) for parameter in module.parameters()}
    names = []
    for name, parameter in model.named_parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
            names.append(name)
    return tuple(names)


def set_train_mode(model: nn.Module, policy: str) -> None:
    """`model.train()`, except that frozen parts stay in eval mode, so that their BatchNorm statistics do not move."""
    model.train()
    for module in frozen_modules(model, policy):
        module.eval()

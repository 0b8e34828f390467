"""Splits any module over the ranks of a group, by a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..communication import CommunicationHandler
from .layer import parallel_layers
from .plan import Style, resolve_plan
from .splitter import Splitter
from .tied import follow_ties, tie_again, tied_parts


class DistributedModelWrapper(nn.Module):
    """A module whose planned parts are replaced, in place, by this rank's slices of them.

    Forward and backward equal the undivided module's. Every rank wraps the same module with the same weights,
    calls it with the same input and gets the whole output; gradients are those of the slices.

    Sizes that the group does not divide are padded with zeros. Heads are never cut: a projection of a module
    that has a `head_dim` gives whole heads to every rank, or is a key or value projection with fewer heads
    than ranks (the module has `num_key_value_groups`), which neighbours then share. An embedding and a head
    with one weight are split together, also where the plan names one of them only.

    Dropout on split features draws its own numbers on every rank; switch it off to compare.

    Args:
        module: changed in place, and available as `module` afterwards.
        plan: name pattern → style, in the words of transformers' tensor-parallel plans or of `Style`. "*" is one
            part of a dotted name; of several patterns that fit a name the first counts. `model.tp_plan` of a
            transformers model fits as it is.
        handler: of the group.

    Raises:
        PlanError: an entry fits nothing, its style is unknown or does not fit the part, or the part can't be
            split over so many ranks. The module may be half split then.
    """

    def __init__(self, module: nn.Module, plan: Mapping[str, str], handler: CommunicationHandler) -> None:
        super().__init__()
        styles = follow_ties(module, resolve_plan(plan, _names(module, plan)))
        tied = [names for names in tied_parts(module) if any(name in styles for name in names)]
        splitter = Splitter(handler)
        done: set[tuple[int, str]] = set()  # a module that stands in two places has two names
        for name, style in styles.items():
            parent_name, _, attribute = name.rpartition(".")
            parent = module.get_submodule(parent_name)
            if (id(parent), attribute) in done:
                continue
            done.add((id(parent), attribute))
            part = getattr(parent, attribute)
            if style is Style.DIVIDE:
                setattr(parent, attribute, splitter.divided(name, part))
            else:
                setattr(parent, attribute, splitter.replacement(name, style, part, parent))
        splitter.finish()
        tie_again(module, tied)
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's."""
        return self.module(*args, **kwargs)

    def pack(self, *, reproducible: bool = True) -> None:
        """Packs every split layer for serving, as `TensorParallelLayer.pack` does."""
        for layer in parallel_layers(self):
            layer.pack(reproducible=reproducible)


#: The name that the first drafts of the project used.
ParallelModelWrapper = DistributedModelWrapper


def _names(module: nn.Module, plan: Mapping[str, str]) -> Iterator[str]:
    """Of everything that a plan can mean: parts and, where one is to be divided, integer attributes."""
    attributes = Style.DIVIDE.value in plan.values()
    for name, part in module.named_modules(remove_duplicate=False):
        if name:
            yield name
        if attributes:
            prefix = f"{name}." if name else ""
            yield from (prefix + key for key, value in vars(part).items() if type(value) is int)

"""Weights that an embedding and an output projection share stay shared when they are split."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from .plan import PlanError, Style

_UNSPLIT = (Style.REPLICATE, Style.GRADIENT_SUM, Style.DIVIDE)
_BY_VOCABULARY = (Style.EMBEDDING, Style.COLUMN, Style.COLUMN_GATHERED)


def follow_ties(module: nn.Module, styles: Mapping[str, Style]) -> dict[str, Style]:
    """`styles`, and a fitting style for each part that shares its weight with one that is split.

    Plans of transformers name the head only; a tied embedding has to be split with it, or the two would go
    apart in training.

    Raises:
        PlanError: a shared weight is split in a way that its other users can't follow.
    """
    followed = dict(styles)
    for names in tied_parts(module):
        split = [name for name in names if styles.get(name, Style.REPLICATE) not in _UNSPLIT]
        for name in names if split else ():
            is_embedding = isinstance(module.get_submodule(name), nn.Embedding)
            style = styles.get(name, Style.EMBEDDING if is_embedding else Style.COLUMN_GATHERED)
            if style not in _BY_VOCABULARY:
                raise PlanError(
                    f"{name}: shares its weight with {', '.join(other for other in names if other != name)} and "
                    f"can't be {style.value!r} when that is split; use embedding and column_gather_output"
                )
            followed[name] = style
    return followed


def tie_again(module: nn.Module, before: list[list[str]]) -> None:
    """Makes the replacements of parts that shared a weight share the first one's."""
    for names in before:
        parts = [module.get_submodule(name) for name in names]
        for part in parts[1:]:
            part.weight = parts[0].weight


def tied_parts(module: nn.Module) -> list[list[str]]:
    """Names of parts with one and the same weight, for each weight that has several."""
    users: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        weight = part._parameters.get("weight")
        if weight is not None:
            users.setdefault(id(weight), []).append(name)
    return [names for names in users.values() if len(names) > 1]

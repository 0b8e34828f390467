"""The table that says how to split a module: names of its parts, and a style for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum


class PlanError(ValueError):
    """A plan that can't be carried out; the message names the entry and what would do."""


class Style(Enum):
    """What happens to a part."""

    COLUMN = "column"  #: output features split, and they stay split
    COLUMN_GATHERED = "column_gather_output"  #: output features split, then gathered
    COLUMN_PACKED = "packed_column"  #: as COLUMN, for two projections in one matrix (gate and up)
    ROW = "row"  #: input features split, the input is already
    ROW_SPLIT_INPUT = "row_split_input"  #: input features split, the input is whole
    EMBEDDING = "embedding"  #: vocabulary split
    GRADIENT_SUM = "gradient_sum"  #: whole on every rank, but used for a part of the features only
    REPLICATE = "replicate"  #: whole on every rank: nothing to do
    DIVIDE = "divide"  #: an integer attribute, divided by the number of ranks (a count of heads)


#: transformers' words (5.x: `base_model_tp_plan`, `model.tp_plan`), as far as dense models use them.
_TRANSFORMERS = {
    "colwise": Style.COLUMN,
    "colwise_rep": Style.COLUMN_GATHERED,
    "colwise_gather_output": Style.COLUMN_GATHERED,
    "packed_colwise": Style.COLUMN_PACKED,
    "rowwise": Style.ROW,
    "rowwise_rep": Style.ROW_SPLIT_INPUT,
    "rowwise_split_input": Style.ROW_SPLIT_INPUT,
    "embedding_rowwise": Style.EMBEDDING,
    "replicated_with_grad_allreduce": Style.GRADIENT_SUM,
    "replicated": Style.REPLICATE,
}

STYLES: dict[str, Style] = {**{style.value: style for style in Style}, **_TRANSFORMERS}


def resolve_plan(plan: Mapping[str, str], names: Iterable[str]) -> dict[str, Style]:
    """Names of parts → their styles, in the order of `names`.

    Args:
        plan: pattern → style; "*" stands for one part of a dotted name: "layers.*.mlp.down_proj". Of several
            patterns that fit one name, the first counts.
        names: of all parts of the module.

    Raises:
        PlanError: a style is unknown, or a pattern fits nothing.
    """
    rules = [
        (pattern, re.compile(_expression(pattern)), _style(pattern, name)) for pattern, name in plan.items()
    ]
    resolved: dict[str, Style] = {}
    used: set[str] = set()
    names = list(names)
    for name in names:
        for pattern, expression, style in rules:
            if expression.fullmatch(name):
                resolved.setdefault(name, style)
                used.add(pattern)
    for pattern in plan:
        if pattern not in used:
            raise PlanError(f"plan entry {pattern!r} fits nothing in the module{_suggestion(pattern, names)}")
    return resolved


def _style(pattern: str, name: str) -> Style:
    if name not in STYLES:
        raise PlanError(f"plan entry {pattern!r}: unknown style {name!r}; known are {', '.join(STYLES)}")
    return STYLES[name]


def _expression(pattern: str) -> str:
    return r"\.".join(r"[^.]+" if part == "*" else re.escape(part) for part in pattern.split("."))


def _suggestion(pattern: str, names: Iterable[str]) -> str:
    """A plan for transformers' base model, given to the model around it, lacks its prefix."""
    expression = re.compile(r"(.+)\." + _expression(pattern))
    for name in names:
        if found := expression.fullmatch(name):
            return f"; did you mean {found[1]}.{pattern}?"
    return ""

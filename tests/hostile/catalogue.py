"""All hostile inputs, in one order that never changes."""

from collections import Counter
from functools import cache

from . import (
    adapters,
    api_dual,
    api_families,
    api_training,
    batches,
    checkpoints,
    column_types,
    families,
    family_folders,
    family_rows,
    flags,
    identity,
    labels,
    models,
    pairs,
    recipes,
    round_files,
    row_files,
    rows,
    score_tables,
    surroundings,
    texts,
    tuning,
    words,
)
from .case import Case

ROWS = (rows, pairs, identity, column_types, row_files, texts)
FOLDERS = (
    models,
    families,
    family_folders,
    family_rows,
    adapters,
    checkpoints,
    batches,
    score_tables,
    round_files,
)
ASKED = (recipes, flags, words, labels, surroundings, tuning, api_dual, api_training, api_families)


@cache
def catalogue() -> tuple[Case, ...]:
    """Every case; names are unique within a class."""
    found = tuple(case for module in (*ROWS, *FOLDERS, *ASKED) for case in module.cases())
    repeated = [key for key, count in Counter((case.group, case.name) for case in found).items() if count > 1]
    assert not repeated, repeated[:5]
    return found

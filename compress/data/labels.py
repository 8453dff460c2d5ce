"""Class labels of a data set -> class ids of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError


def class_ids(labels: Sequence[Any], config: Any, places: Sequence[str], names: Sequence[str] | None = None,
              notes: list[str] | None = None) -> NDArray[np.int64]:  # fmt: skip
    """Give the model's class id of each label [rows]: a number is the id, a name is looked up in the model's config.

    `names` are those of a data set with numbered labels: where the model knows them all, they count. Names that the
    model does not know, but exactly as many as it has classes, are numbered in alphabetical order, as image folders
    are. Raises DataError for labels that the model does not have.
    """
    known = {str(name).casefold(): int(index) for name, index in (getattr(config, "label2id", None) or {}).items()}
    if names is not None and all(name.casefold() in known for name in names):
        labels = [names[int(label)] for label in labels]
    if not all(_is_whole(label) for label in labels):
        distinct = sorted({str(label) for label in labels})
        unknown = [name for name in distinct if name.casefold() not in known]
        if unknown and len(distinct) == config.num_labels:
            known = {name.casefold(): index for index, name in enumerate(distinct)}
            if notes is not None:
                notes.append("labels unknown to the model, numbered in alphabetical order")
        elif unknown:
            row = next(row for row, label in enumerate(labels) if str(label) == unknown[0])
            raise DataError(
                f"the model has no class {unknown[0]!r}",
                where=places[row],
                remedy=f"label by number, or by the model's names: {', '.join(list(config.label2id)[:5])}, ...",
            )
        labels = [known[str(label).casefold()] for label in labels]
    ids = np.asarray([int(label) for label in labels], np.int64)
    outside = np.flatnonzero((ids < 0) | (ids >= config.num_labels))
    if len(outside):
        raise DataError(
            f"the label {ids[outside[0]]} is none of the model's {config.num_labels} classes",
            where=places[int(outside[0])],
            remedy=f"number the classes from 0 to {config.num_labels - 1}",
        )
    return ids


def _is_whole(label: Any) -> bool:
    return isinstance(label, int) or (isinstance(label, str) and label.strip().isdecimal())

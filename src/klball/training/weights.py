"""Which samples the adversary weighs how much: a table of all, and files for people of the first."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset

from klball.data.ids import ids_of, places_of
from klball.files import write_csv
from klball.scores.tails import largest

TOP = 20
WEIGHTS_FILE = "top_weighted.csv"
GROUPS_FILE = "groups.csv"

Rows = list[dict[str, Any]]


class Weighed(NamedTuple):
    """Rows of the two files; no groups where samples are weighed."""

    groups: Rows
    top: Rows


def weight_table(trainer: Any) -> Dataset:
    """`sample_weights` of a trainer."""
    name, sign = trainer.entry
    ledger = trainer.accountant.ledger
    weights = (trainer.accountant.weights() * len(ledger)).double().cpu().numpy()
    scores = (sign * ledger.scores()["score"]).double().cpu().numpy()
    columns = {
        "sample_id": ids_of(trainer.samples),
        "n_q": pa.array(weights),
        name: pa.array(scores, mask=~ledger.known.cpu().numpy()),
    }
    return Dataset(pa.table(columns))


def write_weights(trainer: Any, rows: Dataset, hidden: tuple[str, ...] = ()) -> Weighed:
    """Both files into the trainer's output folder, the groups' where there are any; see `Weighed`.

    rows: as given, by `sample_id`, for the texts; hidden: further columns of theirs to show.
    """
    name, sign = trainer.entry
    groups = [
        {(name if key == "score" else key): (sign * v if key == "score" else v) for key, v in row.items()}
        for row in trainer.accountant.group_rows()
    ]
    folder = Path(str(trainer.args.output_dir))
    if groups:
        write_csv(folder / GROUPS_FILE, groups)
    top = _top_weighted(trainer, rows, hidden)
    write_csv(folder / WEIGHTS_FILE, top)
    return Weighed(groups, top)


def _top_weighted(trainer: Any, rows: Dataset, hidden: tuple[str, ...]) -> Rows:
    """The samples of largest weight; those without a score weigh as they are, and have none to show."""
    table = trainer.sample_weights()
    columns = table.data.table
    known = np.flatnonzero(columns[trainer.entry[0]].is_valid().to_numpy())
    heaviest = known[largest(columns["n_q"].to_numpy()[known], TOP)].tolist()
    shown = {unit: table[unit] for unit in heaviest}
    ids = {own["sample_id"] for own in shown.values()}
    place, first = places_of(rows, ids), places_of(table, ids)  # the units of a sample are neighbours
    top = []
    for unit, own in shown.items():
        row = rows[place[own["sample_id"]]]
        texts = trainer.texts_of(row, unit - first[own["sample_id"]])
        top.append({**own, **texts, **{name: row[name] for name in hidden}})
    return top

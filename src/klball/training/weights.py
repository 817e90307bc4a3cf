"""Which samples the adversary weighs how much: a table of all, and files for people of the first."""

from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, Value

from klball.files import write_csv

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
    weights = (trainer.accountant.weights() * len(ledger)).tolist()
    scores = (sign * ledger.scores()["score"]).tolist()
    known = zip(scores, ledger.known.tolist(), strict=True)
    columns = {
        "sample_id": trainer.samples["sample_id"][:],
        "n_q": weights,
        name: [score if seen else None for score, seen in known],
    }
    kinds = {"sample_id": Value("string"), "n_q": Value("float64"), name: Value("float64")}
    return Dataset.from_dict(columns, features=Features(kinds))


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
    ids, weights = table["sample_id"][:], table["n_q"][:]
    known = [unit for unit, score in enumerate(table[trainer.entry[0]]) if score is not None]
    place = {sample_id: row for row, sample_id in enumerate(rows["sample_id"])}
    first = {sample_id: unit for unit, sample_id in reversed([*enumerate(ids)])}  # its units are neighbours
    top = []
    for unit in sorted(known, key=lambda unit: -weights[unit])[:TOP]:
        row = rows[place[ids[unit]]]
        texts = trainer.texts_of(row, unit - first[ids[unit]])
        top.append({**table[unit], **texts, **{name: row[name] for name in hidden}})
    return top

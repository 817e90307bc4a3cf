"""From any supported source and row format to token ids, answer labels and a sample id.

In four steps, each in a file of its own: `sources` (with `readers`) reads, `ids` numbers, `formats` (with
`texts`, `conversations` and `preferences`) checks and brings into TRL's formats, `encoding` tokenises.
"""

from klball.data.encoding import encode, load_chat_template, texts_of
from klball.data.formats import IGNORED, to_trl_format
from klball.data.ids import with_sample_ids
from klball.data.preferences import to_preferences
from klball.data.sources import as_dataset, first_rows, is_one_table, load_rows

__all__ = [
    "IGNORED",
    "as_dataset",
    "encode",
    "first_rows",
    "is_one_table",
    "load_chat_template",
    "load_rows",
    "texts_of",
    "to_preferences",
    "to_trl_format",
    "with_sample_ids",
]

from .interactive import lines as lines
from .page import Cell as Cell
from .page import Page as Page
from .page import Plot as Plot
from .page import Record as Record
from .page import Section as Section
from .page import Table as Table
from .page import write_page as write_page

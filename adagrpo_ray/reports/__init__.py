"""Reports: one HTML page with figures, tables and example groups of one run, or of several runs side by side.

`run_data` reads runs, and `examples` selects some of their groups. `charts` lists the figures, which `bars` and
`curves` draw with `drawing` in the colours of `palette`. `tables` makes the tables. `page` renders the HTML page, and
`write` saves it.
"""

from adagrpo_ray.reports.run_data import Run, read
from adagrpo_ray.reports.write import PAGE, PLOTS, write_report

__all__ = ["PAGE", "PLOTS", "Run", "read", "write_report"]

"""What makes a good reference: a recording is heard, graded with reasons, cut to its best window, and levelled.

`hearing` measures, `report` grades, `window` chooses, `preparation` makes of it what a voice is kept as. Apart from
the engines, which take any prepared recording. The studio and the doctor call here.
"""

from afterwords.reference.hearing import level_over_time
from afterwords.reference.preparation import Prepared, prepare
from afterwords.reference.report import Finding, Report, examine
from afterwords.reference.window import Window, best_window

__all__ = ["Finding", "Prepared", "Report", "Window", "best_window", "examine", "level_over_time", "prepare"]

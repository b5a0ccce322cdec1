"""Prepare recordings for cloning: measure, grade with reasons, cut to the best window, normalize the level.

`transcription` runs Whisper and aligns a given transcript with the recognized words.
"""

from afterwords.reference.grading import Finding, Report, examine
from afterwords.reference.measurement import level_over_time
from afterwords.reference.preparation import PreparedReference, prepare
from afterwords.reference.window import Window, best_window

__all__ = ["Finding", "PreparedReference", "Report", "Window", "best_window", "examine", "level_over_time", "prepare"]

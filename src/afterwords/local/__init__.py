"""Use cases on this machine: clone a voice, say a text with it, stream it.

The command line and `import afterwords` both call these. Nothing leaves the machine.
"""

from afterwords.local.cloning import (
    CloneResult,
    check_clone,
    clone,
    inspect,
    make_voice,
    transcribe_recording,
    transcript_doubts,
)
from afterwords.local.management import (
    default_voice,
    export_bundle,
    export_voice,
    import_bundle,
    import_voice,
    library,
    remove,
    rename,
    voices,
)
from afterwords.local.prompts import has_prompt, likeness, make_prompt
from afterwords.local.speaking import estimate, must_prepare, say, stream

__all__ = [
    "CloneResult",
    "check_clone",
    "clone",
    "default_voice",
    "estimate",
    "export_bundle",
    "export_voice",
    "has_prompt",
    "import_bundle",
    "import_voice",
    "inspect",
    "library",
    "likeness",
    "make_prompt",
    "make_voice",
    "must_prepare",
    "remove",
    "rename",
    "say",
    "stream",
    "transcribe_recording",
    "transcript_doubts",
    "voices",
]

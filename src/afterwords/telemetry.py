"""Turn the telemetry of libraries off, since nothing leaves the machine that its user did not send.

Called before an engine or a model of transcripts loads. Libraries read these variables when they are imported, so this
module imports none of them by itself. docs/privacy.md lists what each library would send.
"""

from __future__ import annotations

import os
from typing import Any, Final

SWITCHES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and later
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, hf_xet and transformers
}


def turn_off_telemetry() -> None:
    """Set the variables that keep libraries silent, for this process and those that it starts.

    A variable that is set already is left as it is, since a person decided on it.
    """
    for name, value in SWITCHES.items():
        if not os.environ.get(name):
            os.environ[name] = value


def import_onnxruntime() -> Any:
    """Return the module onnxruntime, silent as far as that is possible.

    Where the program imported it before, it has written a device id and its first event already, which it uploads. The
    call here stops further events.
    """
    turn_off_telemetry()
    import onnxruntime

    if os.environ["ORT_DISABLE_TELEMETRY"] == SWITCHES["ORT_DISABLE_TELEMETRY"]:
        onnxruntime.disable_telemetry_events()
    return onnxruntime

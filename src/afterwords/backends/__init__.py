"""Engines: the plug-ins that speak. `base` is their protocol, `registry` finds and loads them."""

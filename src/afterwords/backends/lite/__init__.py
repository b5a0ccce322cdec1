"""The `lite` engine: a voice on any CPU without torch and without a model hub.

It matches pitch and timbre: it resembles a speaker and is not their identity.
`g2p` converts words to phonemes with a `dictionary` · `kokoro` synthesizes them with a style and a pitch · `styles` is
the space of styles · `speaker` computes speaker embeddings · `search` finds the style of a voice · `shaping` matches
its spectrum · `enroll` combines these into a `profile` · `engine` is the plug-in.
"""

PROMPT_VERSION = "3"
"""Increased when a change of enrollment makes older profiles worth preparing again."""

"""The `lite` engine: a voice on any CPU, straight after installation, without torch and without a model hub.

It matches pitch and timbre: it resembles a speaker and is not their identity. From sound to sound:
`spelling` writes signs as words · `g2p` writes words as phonemes · `kokoro` speaks them with a style and a pitch ·
`styles` is the space of voices · `speaker` hears who speaks · `search` finds the style of a voice · `shaping` brings
its spectrum nearer · `enrol` puts these together and keeps the result in a `profile` · `engine` is the plug-in.
"""

PROMPT_VERSION = "1"
"""Goes up whenever a change in enrolment makes older profiles worth making again."""

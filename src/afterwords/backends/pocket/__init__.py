"""The engine `pocket`: Kyutai's Pocket TTS, a clone of a voice on a plain CPU."""

"""Read a book, speak it sentence by sentence, and write one audio file with chapters."""

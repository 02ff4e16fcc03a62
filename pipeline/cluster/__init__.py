"""Ray session of a command and its workers: sessions, signals, progress, failures in one line."""

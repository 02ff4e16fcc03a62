"""Meaning of a log line: the declared schema, its statistics, and the encoding of Arrow columns to batch columns."""

"""What a log line means: the declared schema, its statistics, and the encoding of Arrow columns into batch columns."""

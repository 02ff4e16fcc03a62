"""The daily job: preflight, predict, train, gate, publish."""

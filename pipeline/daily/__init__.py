"""Daily job: preflight, predict, train, gate, publish."""

"""Records of a root and the line that they make: fence, checkpoints that count, moves by hand, audit."""

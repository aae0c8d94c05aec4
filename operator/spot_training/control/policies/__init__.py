"""One policy a file: pure functions of data and a clock."""

"""What users write and what the programs agree on; imported by all, imports none of them."""

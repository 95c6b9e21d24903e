"""What drafting gains on a model, and whether the text stays the same: compare, check and the benchmark's harness."""

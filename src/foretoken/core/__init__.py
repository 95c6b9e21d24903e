"""The method itself, plain Python on token ids: propose, score, verify, keep."""

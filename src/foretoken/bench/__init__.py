"""Benchmarks: every speed beside plain decoding in the same run, every text compared with the plain one."""

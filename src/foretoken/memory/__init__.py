"""What is remembered between answers and between runs: namespaces, the history on disk, background corpora."""

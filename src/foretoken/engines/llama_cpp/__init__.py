"""GGUF files, run by llama.cpp through the low-level calls of llama-cpp-python."""

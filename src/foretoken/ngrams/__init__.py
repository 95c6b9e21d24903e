"""The n-gram core: counted contexts, a mixer that learns how much each is worth, and the compiled loops over both."""

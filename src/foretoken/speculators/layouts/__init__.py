"""The layouts of files, a module for each kind of heads."""

"""The doors for people: text in and text out, and the hook of transformers' own generate."""

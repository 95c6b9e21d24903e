"""Small trained heads that guess the next tokens from what a model's output head reads: modules, formats, adapter."""

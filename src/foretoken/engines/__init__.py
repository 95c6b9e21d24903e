"""Who runs the target model: one file an engine."""

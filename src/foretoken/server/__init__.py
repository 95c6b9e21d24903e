"""An OpenAI-compatible server: many clients, one model, and every answer says what drafting did for it."""

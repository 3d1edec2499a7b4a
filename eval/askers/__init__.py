"""Who answers a benchmark's questions: a session, a transformers model, a log of old answers, or a control."""

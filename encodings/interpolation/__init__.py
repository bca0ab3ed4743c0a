"""Extensions that fit longer texts into the trained range: other coordinates or frequencies."""

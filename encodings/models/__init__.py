"""Layer schedules of published models, by name."""

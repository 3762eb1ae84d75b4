"""Running an evaluation: plan, stages, records."""

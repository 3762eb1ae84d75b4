"""Running an evaluation: the plan, the stages of measurement, a record of every clip."""

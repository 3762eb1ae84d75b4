"""Verdicts: gates, their margins, and an earlier accepted evaluation."""

"""Results to reports: JSON, Markdown, HTML and JUnit XML, all from the one document."""

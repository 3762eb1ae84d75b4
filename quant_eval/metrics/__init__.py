"""What is measured of codes, logits and clips, and the table that names it all."""

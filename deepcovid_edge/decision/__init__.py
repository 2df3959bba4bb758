"""From probabilities to a decision: records, thresholds, site files and their statistics."""

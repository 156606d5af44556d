"""From scans to slices: sources, splits, extraction, datalists."""

"""A whole run, stage by stage, and its report."""

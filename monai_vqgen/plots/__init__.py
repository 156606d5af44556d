"""Pictures of slices, codes and curves."""

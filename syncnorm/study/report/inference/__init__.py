"""What numbers can carry: intervals, corrected comparisons, effects, and the rule of what is found."""

"""What a study is, and the runs that it expands into."""

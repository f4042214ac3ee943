"""What the `syncnorm` command can do, one file a command."""

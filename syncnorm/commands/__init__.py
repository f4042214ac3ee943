"""The subcommands of `syncnorm`, one file each."""

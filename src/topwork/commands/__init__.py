"""One module for each subcommand of `topwork`: `add_arguments` declares it, `run` does it."""

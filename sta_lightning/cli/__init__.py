"""The command ``sta``: a table of subcommands; each imports the heavy rooms only when it runs."""

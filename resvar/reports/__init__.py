"""From run directories to tables. Nothing here trains, and nothing here needs torch."""

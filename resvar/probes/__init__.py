"""Why an ordering trains well or badly: what the signal does along the depth, measured."""

"""Which of these networks is anybody's module? `resvar identify`, from the operations it runs.

`trace` records what the signal meets, `structure` finds stem, units and head in it, `reading` names
the architecture, `differences` compares it with `models.layout`, `twin` compares the functions, and
`identify` puts the answer together. Nothing here depends on how the module is written.
"""

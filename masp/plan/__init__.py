"""What a run will take, from image headers and the configuration alone.

`headers` reads sizes; `tokens` counts tokens; `disk` computes bytes and free space; `work`, `evaluation` and
`rates` compute FLOP and hours, which `measure` times here; `levers` says what would save space; `actual` compares with
what a run has left. `plan` combines them, `render` formats the result.
"""

"""How does a directory of labeled images become a run, and a run a number?

`look` says what the images allow, `machine` what is here; `sizing` chooses how long and how fast to train, for which
`scales` reads the size of the VLM's word embeddings; `choices` combines them and `write` makes a commented file of it.
`steps` says which steps a run consists of, and `pipeline` takes them one after the other.
"""

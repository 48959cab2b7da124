# wire.pxd - one level of a protobuf message as arrays.
#
# Owns   : nothing; scan() returns new arrays.
# Lends  : nothing; offsets refer to the caller's bytes.
# GIL    : held (files are read when a model is registered or loaded, never on a request).
# Threads: safe.

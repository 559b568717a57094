"""Clients of the broker. `session` decides, `sync` and `aio` do the I/O; users import them from `zq`."""

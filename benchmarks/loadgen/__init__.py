"""The load generator: compiled, busy-polling, open loop (Poisson) or closed loop, latency from the intended send time."""

"""The machine a run computes on: devices, processes, signals, clocks and precision."""

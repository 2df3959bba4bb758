"""Speed as files that a stranger can reproduce and compare.

    settings -> measure (work, scenarios, watch) -> samples -> results (versioned JSON) -> compare

Raw samples are stored; every figure (`figures`, `percentiles`, `stability`) is computed from them,
when a result is written and again when it is read.

Times are taken by `time.perf_counter_ns`, a clock that never goes back. The parts of an engine's
call (`host_to_device`, `compute`, `device_to_host`) are timed by CUDA events; no GPU has run them
yet.
"""

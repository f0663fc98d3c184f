// Denormal numbers as zero, on every thread that computes.
#pragma once

// Sets the mode of the calling thread and of the other `threads` - 1 of its OpenMP team, which torch shares.
// Returns the calling thread's mode before.
bool flush_denormals(bool flush, int threads);

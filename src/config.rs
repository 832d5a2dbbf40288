//! Settings: one table drives flags, environment and file.

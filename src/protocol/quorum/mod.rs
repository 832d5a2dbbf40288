//! The read and write folds.

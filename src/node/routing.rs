//! The topology in force.

//! Stamps that are never issued twice.

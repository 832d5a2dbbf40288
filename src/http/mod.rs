//! REST for clients and people.
